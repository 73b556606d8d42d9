"""Small programs under mpiexec: how they are run, and what is expected of those that go wrong."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from launcher import MPIEXEC, Outcome, ended

LIMIT = 10.0  # seconds in which every fault must end

needs_mpiexec = pytest.mark.skipif(MPIEXEC is None, reason="no mpiexec beside the interpreter or on PATH")

HEAD = """
import os, sys, threading, time
from apts_mpi.parallel.launch import finish, start
"""


def ends_all_at_once() -> bool:
    """Whether the launcher ends the others in the moment in which a rank dies, so that they may not come to a word (MPICH's)."""
    told = subprocess.run([str(MPIEXEC), "--version"], capture_output=True, text=True, check=False).stdout
    return "HYDRA" in told


def run(tmp_path: Path, body: str, ranks: int = 3, limit: float = LIMIT) -> Outcome:
    """Run ``body`` on ``ranks`` ranks by plain python; a hang fails the test."""
    script = tmp_path / "program.py"
    script.write_text(HEAD + textwrap.dedent(body))
    return ended([str(MPIEXEC), "-n", str(ranks), sys.executable, str(script)], tmp_path, limit)


def failed(outcome: Outcome, *words: str) -> None:
    """The run ended with a status, in time, and said all of ``words``."""
    assert outcome.status != 0, outcome.text
    for word in words:
        assert word in outcome.text, f"{word!r} is not in\n{outcome.text}"
