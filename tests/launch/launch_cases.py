"""Small programs under mpiexec: how they are run, and what is expected of those that go wrong."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

BESIDE = Path(sys.executable).parent / "mpiexec"
MPIEXEC = str(BESIDE) if BESIDE.exists() else shutil.which("mpiexec")
LIMIT = 10.0  # seconds in which every fault must end

needs_mpiexec = pytest.mark.skipif(MPIEXEC is None, reason="no mpiexec beside the interpreter or on PATH")

# Open MPI as root and with more ranks than cores; MPICH ignores these.
SETTINGS = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "OMPI_MCA_mpi_yield_when_idle": "1",
    "OMPI_MCA_pml": "ob1",  # on one node: starts in a third of the time
    "OMPI_MCA_btl": "self,sm",
    "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
}
HEAD = """
import os, sys, threading, time
from apts_mpi.parallel.launch import finish, start
"""


@dataclass
class Outcome:
    """How a program ended."""

    status: int
    text: str  # stdout and stderr
    seconds: float


def ends_all_at_once() -> bool:
    """Whether the launcher ends the others in the moment in which a rank dies, so that they may not come to a word (MPICH's)."""
    told = subprocess.run([str(MPIEXEC), "--version"], capture_output=True, text=True, check=False).stdout
    return "HYDRA" in told


def run(tmp_path: Path, body: str, ranks: int = 3, limit: float = LIMIT) -> Outcome:
    """Run ``body`` on ``ranks`` ranks by plain python; a hang fails the test."""
    script = tmp_path / "program.py"
    script.write_text(HEAD + textwrap.dedent(body))
    command = [str(MPIEXEC), "-n", str(ranks), sys.executable, str(script)]
    began = time.monotonic()
    # A file, not a pipe: a grandchild that outlives the launcher would keep a pipe open.
    with open(tmp_path / "output", "w+b") as output:
        process = subprocess.Popen(
            command,
            env={**os.environ, **SETTINGS},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = process.wait(limit)
        except subprocess.TimeoutExpired:
            status = -1
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        output.seek(0)
        text = output.read().decode(errors="replace")
    assert status != -1, f"still running after {limit} s; so far:\n{text}"
    return Outcome(status, text, time.monotonic() - began)


def failed(outcome: Outcome, *words: str) -> None:
    """The run ended with a status, in time, and said all of ``words``."""
    assert outcome.status != 0, outcome.text
    for word in words:
        assert word in outcome.text, f"{word!r} is not in\n{outcome.text}"
