#!/usr/bin/env bash
# Every check there is: bash tests/run.sh [--openmpi] [-- PYTEST ARGUMENTS]
#
# ruff, mypy, a small form of the experiments of benchmarks/paper, the wheel with and without a compiler, the kernels under
# sanitizers, the unit tests, the parallel tests at 1, 2, 3 and 4 ranks under MPICH (with --openmpi or CI=true under Open MPI
# too), coverage over all of them, and whether every line of the fault list is shown (tests/faults/run.sh runs these tests
# alone). Makes its own environments; ends with "N passed, N failed".
set -uo pipefail
openmpi=${CI:-false}
while [ $# -gt 0 ]; do
    case $1 in
        --openmpi) openmpi=true ;;
        --) shift; break ;;
        *) echo "unknown argument: $1; usage: bash tests/run.sh [--openmpi] [-- PYTEST ARGUMENTS]" >&2; exit 2 ;;
    esac
    shift
done
chosen=$# # with arguments of the caller's a stage may find no test, and coverage says nothing
extra=("$@")
recorder="python -m coverage run"
. "$(dirname -- "${BASH_SOURCE[0]}")/stages.sh"

begin "$venv/logs"
mkdir -- "$logs/lines"
export COVERAGE_FILE=$logs/lines/of # with the process added, one file each

check ruff ruff check --config tests/ruff.toml apts_mpi tests benchmarks
check mypy mypy
[ "$chosen" != 0 ] || check paper timeout -k 10 180 python benchmarks/paper --quick
[ "$chosen" != 0 ] || check wheels bash tests/wheels.sh
[ "$chosen" != 0 ] || check sanitizers bash tests/sanitize.sh
slurm & # it waits most of the time
one_process unit "not mpi" --ignore=tests/slurm --ignore=tests/campaigns "$@"
one_process campaigns "not mpi" tests/campaigns "$@"
wait
for ranks in 1 2 3 4; do parallel mpich "$ranks" mpi mpiexec; done
if [ "$openmpi" = true ]; then
    under_openmpi
    for ranks in 1 2 3 4; do parallel openmpi "$ranks" mpi mpiexec --oversubscribe; done
    one_process openmpi-launch "not mpi" tests/launch tests/faults "$@" # what starts mpiexec by itself
    one_process openmpi-campaigns "not mpi" tests/campaigns "$@"
    export PATH=$venv/bin:$path
fi
if [ "$chosen" = 0 ]; then
    python -m coverage combine -q "$logs/lines" >/dev/null 2>&1
    check coverage python -m coverage report --skip-covered --fail-under=90
    tail -n 1 "$logs/coverage.log"
    check faults python tests/faults/table.py "$APTS_FAULTS" --check
    tail -n 1 "$logs/faults.log"
fi
finish
