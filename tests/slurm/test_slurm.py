"""On a real Slurm: the true world size, the wrong PMI, a killed rank, and the scripts of jobs/ and of `job render` end to end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from slurm_cases import ENVIRON, embedded_pmi, ended, on_slurm, outcome, srun, submitted, train

pytestmark = on_slurm


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
    assert (told["NumTasks"], told["Requeue"]) == ("2", "0")
    assert json.loads((place / "runs/my first/completion.json").read_text())["ranks"] == 2
    assert told["TimeLimit"] == "00:04:00" and "#SBATCH --signal=USR1@60 " in (place / "mine.sbatch").read_text()
