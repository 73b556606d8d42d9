#!/usr/bin/env bash
# From a bare machine to a trained network: bash jobs/laptop.sh [FILE.toml] [--section.key VALUE ...]
#
# Needs Python 3.11 or newer; no MPI, no torch, no compiler. Makes .venv beside setup.cfg, prepares the data that come
# with scikit-learn and trains on RANKS ranks (default 2). Arguments go to `apts-mpi train`; relative paths in them, but
# for FILE.toml, are seen from the repository, and so are data/ and runs/. A second call reuses what is there.
set -euo pipefail
ranks=${RANKS:-2}
[[ $ranks =~ ^[1-9][0-9]*$ ]] || { echo "RANKS must be a positive integer, got '$ranks'" >&2; exit 2; }
. "$(dirname -- "${BASH_SOURCE[0]}")/../jobs/environment.sh"

if [ $# -gt 0 ] && [ -f "$1" ]; then # before the working directory changes
    file=$(cd -- "$(dirname -- "$1")" && pwd -P)/$(basename -- "$1")
    set -- "$file" "${@:2}"
fi
cd -- "$root"
environment "$root/.venv" mpich,demo,plot,study
export PATH="$root/.venv/bin:$PATH" OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
gpus=$(nvidia-smi -L 2>/dev/null | grep -c GPU || true) # with fewer than ranks the example stays on the CPU: no GPU is shared unasked
[ "${gpus:-0}" = 0 ] || [ "$ranks" -le "$gpus" ] || export APTS_RUN__DEVICE="${APTS_RUN__DEVICE:-cpu}"
[ "$ranks" -le "$(env -u OMP_NUM_THREADS nproc)" ] || export MPIR_CVAR_ENABLE_HEAVY_YIELD=1 # more ranks than cores: waiting must not take a core

[ -e data/digits/manifest.json ] || python -m apts_mpi data convert digits - data/digits
[ $# -gt 0 ] || set -- --stop.epochs 30 # a few seconds
before=$(mktemp)
trap 'rm -f -- "$before"' EXIT
newest() { find runs -maxdepth 2 -name "$1" -newer "$before" -printf '%T@ %h\n' 2>/dev/null | sort -n | tail -n 1 | cut -d' ' -f2-; }
code=0
mpiexec -n "$ranks" python -m apts_mpi train "$@" || code=$?
if [ "$code" = 75 ]; then # the hint above names programs of .venv, which the caller's shell does not know
    printf '\nor from here: %sbash %q --resume %q\n' "${RANKS:+RANKS=$RANKS }" "$root/jobs/laptop.sh" "$(newest records.csv)"
fi
[ "$code" = 0 ] || exit "$code"
run=$(newest completion.json)
if [ -n "$run" ]; then
    run=$root/$run
    printf '\nrun directory: %s\nlook at it with: %q show %q   (or plot)\n' "$run" "$root/.venv/bin/apts-mpi" "$run"
fi
