"""Start a program on several ranks, with the launcher beside this interpreter."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

SECONDS = 3600.0  # for one program


def mpiexec() -> str:
    """The launcher of the MPI in this environment."""
    beside = Path(sys.executable).parent / "mpiexec"
    return str(beside) if beside.exists() else shutil.which("mpiexec") or "mpiexec"


def launch(ranks: int, words: Sequence[str], environment: Mapping[str, str] | None = None, allowed: Sequence[int] = (0,)) -> str:
    """What ``python WORDS`` prints on ``ranks`` ranks of one thread; RuntimeError with its words if its status is not ``allowed``."""
    command = [mpiexec(), "-n", str(ranks), sys.executable, *words]
    around = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, env=around)
    if done.returncode not in allowed:
        raise RuntimeError(f"{' '.join(command)} ended with status {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout
