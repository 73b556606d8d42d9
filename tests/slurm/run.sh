#!/usr/bin/env bash
# The tests that need a Slurm: [SLURM_LOCAL=TOOL] bash tests/slurm/run.sh [PYTEST ARGUMENTS]
#
# With SLURM_CONF set they run on that Slurm. Else TOOL, a program that knows the verbs start, stop and env (which prints
# `export SLURM_CONF=...`), starts a private one in SLURM_LOCAL_DIR for as long as they take; by default tests/slurm/private.sh.
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/../../jobs/environment.sh"
cd -- "$root"

if ! python -c 'import matplotlib, mpi4py, pytest, pytest_timeout, scipy, torch' 2>/dev/null; then
    environment "$root/.venv-test" mpich,test
    export PATH=$root/.venv-test/bin:$PATH
fi
if [ -z "${SLURM_CONF:-}" ]; then
    tool=${SLURM_LOCAL:-$root/tests/slurm/private.sh} own=${SLURM_LOCAL_DIR:-}
    export SLURM_LOCAL_DIR=${own:-$(mktemp -d)}
    stop() {
        "$tool" stop || true
        [ -n "$own" ] || rm -rf -- "$SLURM_LOCAL_DIR"
    }
    trap stop EXIT
    timeout -k 10 240 "$tool" start
    eval "$("$tool" env)"
fi
export OMP_NUM_THREADS=1 SLURM_REQUIRED=1 # a Slurm that does not answer is a failure here, no reason to skip
timeout -k 10 900 python -m pytest -p no:cacheprovider tests/slurm "$@"
