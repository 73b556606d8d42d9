"""On a real Slurm: a training that its time limit, a signal and a more urgent job cut off goes on by itself, and not for ever.

Both jobs run side by side: they wait for the queue most of the time.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from slurm_cases import LIMIT, ended, on_slurm, outcome, srun, submitted

pytestmark = [*on_slurm, pytest.mark.fault(46)]
ITERATIONS = 105
TRAINING = ["--data.path", "data/tiny", "--data.batch", "16", "--model.widths", "4", "--stop.epochs", "0", "--run.evaluate", "0"]
TRAINING += ["--checkpoint.every", "1"]
LONG = ["--stop.iterations", str(ITERATIONS), "--comm.emulate_latency", "0.2"]  # 3 messages an iteration: 63 s, more than its limit
ENDLESS = ["--stop.iterations", "1000000", "--comm.emulate_latency", "0.05"]
SIGNALLED = ("scancel", "--signal=USR1")


def log_of(place: Path, number: str) -> str:
    path = place / f"apts-requeue-{number}.log"
    return path.read_text() if path.exists() else ""


def starts(text: str) -> list[str]:
    """What the starts of a job have written, one each."""
    return re.split(r"^requeue: start \d+ of at most \d+\n", text, flags=re.MULTILINE)[1:]


def until(place: Path, number: str, ready: Callable[[list[str]], bool]) -> None:
    """Wait for something in the log of a job; one that ends before, or takes too long, fails the test."""
    began = time.monotonic()
    while time.monotonic() - began < LIMIT / 2:
        text = log_of(place, number)
        if ready(starts(text)):
            return
        state = ended(["squeue", "-h", "-j", number, "-o", "%T"], place, 30).stdout.strip()
        assert state in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING"), text
        time.sleep(0.3)
    raise AssertionError(f"job {number}: {log_of(place, number)}")


def iterations(folder: Path) -> int:
    """Lines of the records so far."""
    path = folder / "records.csv"
    return max(0, len(path.read_text().splitlines()) - 1) if path.exists() else 0


def at_work(place: Path, number: str, start: int, folder: Path, more: int = 3) -> None:
    """Wait until start ``start`` of a job has made some iterations."""
    until(place, number, lambda found: len(found) >= start and "under way" in found[start - 1])
    before = iterations(folder)
    until(place, number, lambda found: iterations(folder) >= before + more)


def call(place: Path, *words: str) -> None:
    done = ended(list(words), place, 30)
    assert done.returncode == 0, done.stderr


def displaced_then_signalled(place: Path) -> None:
    """A job that must make room and is signalled goes on from its checkpoints, as often as it may."""
    words = ["--export=ALL,MAX_RESTARTS=2", "--time=5", "jobs/requeue.sbatch", *TRAINING, *ENDLESS]
    with submitted(place, *words) as number:
        folder = place / f"runs/job-{number}"
        at_work(place, number, 1, folder)
        call(place, "scontrol", "requeue", number)  # as Slurm does for a more urgent job: SIGTERM, and soon SIGKILL
        for start in (2, 3):
            at_work(place, number, start, folder)
            call(place, *SIGNALLED, number)
        told = outcome(place, number)
        text = log_of(place, number)
    displaced, signalled, last = starts(text)
    assert (told["JobState"], told["ExitCode"], told["Restarts"]) == ("FAILED", "75:0", "2"), text
    for start, name in ((displaced, "SIGTERM"), (signalled, "SIGUSR1"), (last, "SIGUSR1")):
        assert re.search(rf"stopped by +{name} on rank \d", start), text
    assert f"requeue: no start is left; sbatch again with APTS_RUN__DIR=runs/job-{number}" in last, text
    assert not (folder / "completion.json").exists() and not (folder / "earlier-1").exists()


def out_of_time_then_signalled(place: Path) -> dict[str, object]:
    """The completion record of a job that its time limit cuts off, then a signal."""
    # 1 s: Slurm may warn up to 60 s earlier, and else the ranks know by themselves when the job ends
    with submitted(place, "--time=1", "--signal=USR1@1", "jobs/requeue.sbatch", *TRAINING, *LONG) as number:
        folder = place / f"runs/job-{number}"
        at_work(place, number, 2, folder)
        call(place, *SIGNALLED, number)
        told = outcome(place, number)
        text = log_of(place, number)
    assert (told["JobState"], told["ExitCode"]) == ("COMPLETED", "0:0"), text
    assert int(told["Restarts"]) >= 2, text
    by_limit, by_signal = starts(text)[:2]
    assert re.search(r"stopped by +(the job ends in \d+ s|SIGUSR1)", by_limit) and "SIGUSR1" in by_signal, text
    assert iterations(folder) == ITERATIONS, text
    return dict(json.loads((folder / "completion.json").read_text()))


def test_time_limit_signal_and_making_room(place: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        tasks = [pool.submit(out_of_time_then_signalled, place), pool.submit(displaced_then_signalled, place)]
        whole = ended(srun(2, "-m", "apts_mpi", "train", *TRAINING, "--stop.iterations", str(ITERATIONS), "--run.dir", "runs/whole"), place)
        assert whole.returncode == 0, whole.stdout + whole.stderr
        found, _ = (task.result() for task in tasks)
    unbroken = json.loads((place / "runs/whole/completion.json").read_text())
    assert found["iterations"] == unbroken["iterations"] == ITERATIONS
    assert found["theta_sha256"] == unbroken["theta_sha256"], "cut off and whole end in other parameters"
