"""The launcher beside this interpreter, and a command that is waited for a limited time; needs no pytest."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BESIDE = Path(sys.executable).parent / "mpiexec"
MPIEXEC = str(BESIDE) if BESIDE.exists() else shutil.which("mpiexec")
# Open MPI as root and with more ranks than cores; either MPI ignores the other's.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MPIR_CVAR_ENABLE_HEAVY_YIELD": "1",
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "OMPI_MCA_mpi_yield_when_idle": "1",
    "OMPI_MCA_pml": "ob1",  # on one node: starts in a third of the time
    "OMPI_MCA_btl": "self,sm",
}


@dataclass
class Outcome:
    """How a command ended."""

    status: int
    text: str  # stdout and stderr
    seconds: float


def ended(command: Sequence[str], folder: Path, limit: float) -> Outcome:
    """Run ``command`` in ``folder``, whose modules it finds; TimeoutError, with what it has said, if it takes longer than ``limit`` s."""
    environ = {**os.environ, **ENVIRONMENT, "PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)])}
    began = time.monotonic()
    # A file, not a pipe: a grandchild that outlives the launcher would keep a pipe open.
    with open(folder / "output", "w+b") as output:
        process = subprocess.Popen(
            command, env=environ, cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            status = process.wait(limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            status = None
        output.seek(0)
        text = output.read().decode(errors="replace")
    if status is None:
        raise TimeoutError(f"still running after {limit:g} s; so far:\n{text}")
    return Outcome(status, text, time.monotonic() - began)
