#!/usr/bin/env bash
# The tests of the fault list alone: bash tests/faults/run.sh [--mpich] [--write]
#
# Under MPICH and Open MPI (--mpich: under the first alone), at 2, 3 and 4 ranks, under a Slurm if one can be had.
# --write: puts the table into docs/reliability.md. Ends with "N of 68 lines shown, N hangs, slowest T s".
set -uo pipefail
openmpi=true table=--check
while [ $# -gt 0 ]; do
    case $1 in
        --mpich) openmpi=false ;;
        --write) table=--write ;;
        *) echo "usage: bash tests/faults/run.sh [--mpich] [--write]" >&2; exit 2 ;;
    esac
    shift
done
chosen=0 extra=() recorder=python
. "$(dirname -- "${BASH_SOURCE[0]}")/../stages.sh"

begin "$venv/fault-logs"
promise campaigns
{ # these wait most of the time
    slurm -m fault
    one_process campaigns "fault and not mpi" tests/campaigns
} &
one_process unit "fault and not mpi" --ignore=tests/slurm --ignore=tests/campaigns
wait
for ranks in 2 3 4; do parallel mpich "$ranks" "fault and mpi" mpiexec; done
if [ "$openmpi" = true ]; then
    under_openmpi
    for ranks in 2 3 4; do parallel openmpi "$ranks" "fault and mpi" mpiexec --oversubscribe; done
    promise openmpi-launch
    one_process openmpi-launch "fault and not mpi" tests/launch tests/faults &
    one_process openmpi-campaigns "fault and not mpi" tests/campaigns
    wait
    export PATH=$venv/bin:$path
fi
check faults python tests/faults/table.py "$APTS_FAULTS" "$table"
finish
status=$?
tail -n 1 "$logs/faults.log"
exit $status
