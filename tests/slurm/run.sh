#!/usr/bin/env bash
# The tests that need a Slurm: [SLURM_LOCAL=TOOL] bash tests/slurm/run.sh [PYTEST ARGUMENTS]
#
# With SLURM_CONF set they run on that Slurm. Else TOOL, a program that knows the verbs start, stop and env (which prints
# `export SLURM_CONF=...`), starts a private one for as long as they take. With neither every test is skipped.
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/../../jobs/environment.sh"
cd -- "$root"

if ! python -c 'import mpi4py, pytest, pytest_timeout, torch' 2>/dev/null; then
    environment "$root/.venv-test" mpich,test
    export PATH=$root/.venv-test/bin:$PATH
fi
if [ -z "${SLURM_CONF:-}" ] && [ -n "${SLURM_LOCAL:-}" ]; then
    own=${SLURM_LOCAL_DIR:-}
    export SLURM_LOCAL_DIR=${own:-$(mktemp -d)}
    stop() {
        "$SLURM_LOCAL" stop || true
        [ -n "$own" ] || rm -rf -- "$SLURM_LOCAL_DIR"
    }
    trap stop EXIT
    "$SLURM_LOCAL" start
    eval "$("$SLURM_LOCAL" env)"
fi
export OMP_NUM_THREADS=1
timeout -k 10 900 python -m pytest -p no:cacheprovider tests/slurm "$@"
