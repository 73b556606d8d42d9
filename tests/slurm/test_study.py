"""On a real Slurm: a study through jobs/strong.sbatch and `scale submit` to its report, and a job that goes back to the queue."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

from slurm_cases import LIMIT, ended, on_slurm, outcome, submitted

pytestmark = on_slurm
STUDY = """
name = "tiny"
ranks = [1, 2]
scaling = ["strong"]
samples = 48
oversubscribe = true
[settings]
data.path = "data/tiny"
model.widths = [4]
stop.iterations = 2
[[method]]
name = "APTS"
[[method]]
name = "SGD"
method = "sgd"
data.batch = 16
"""


def apts(place: Path, *words: str, limit: float = LIMIT) -> subprocess.CompletedProcess[str]:
    return ended([sys.executable, "-m", "apts_mpi", *words], place, limit)


def finished(place: Path) -> set[str]:
    return {path.parent.name for path in (place / "studies/tiny/runs").glob("*/completion.json")}


def test_a_study_goes_from_an_array_by_hand_through_submit_to_its_report(place: Path) -> None:
    (place / "tiny.toml").write_text(STUDY)
    by_hand = ["--time=5", "--array=0,3", "jobs/strong.sbatch", "tiny.toml"]
    with submitted(place, *by_hand) as number:
        told = [outcome(place, f"{number}_{index}") for index in (0, 3)]
    logs = "".join(path.read_text() for path in place.glob("apts-strong-*.log"))
    assert [each["JobState"] for each in told] == ["COMPLETED"] * 2, logs
    first = finished(place)
    assert len(first) == 8 and {name[-4:] for name in first} == {"rep0", "rep3"}, "2 methods, 2 rank counts, 2 repetitions"
    times = {name: (place / f"studies/tiny/runs/{name}/completion.json").stat().st_mtime_ns for name in first}

    dry = apts(place, "scale", "submit", "tiny.toml", "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert "--dependency=afterany:" in dry.stdout
    assert "#SBATCH --array=1,2,4 " in (place / "studies/tiny/jobs/nodes-1.sbatch").read_text(), "0 and 3 are there"
    answer = apts(place, "scale", "submit", "tiny.toml")
    assert answer.returncode == 0, answer.stderr
    report = re.findall(r"\b\d{5,}\b", answer.stdout)[-1]
    told = [outcome(place, report)]
    logs = "".join(path.read_text() for path in (place / "studies/tiny/jobs").glob("*.log"))
    assert (told[0]["JobState"], told[0]["ExitCode"]) == ("COMPLETED", "0:0"), logs
    assert len(finished(place)) == 20, logs
    assert times == {name: (place / f"studies/tiny/runs/{name}/completion.json").stat().st_mtime_ns for name in first}, "made twice"
    points = json.loads((place / "studies/tiny/points.json").read_text())
    assert {point["run"] for point in points["points"]} == finished(place) and not points["failed"]
    assert {point["ranks"] for point in points["points"]} == {1, 2}
    text = (place / "studies/tiny/report/report.md").read_text()
    assert "20 of 20 runs finished, 0 failed" in text
    for method in ("APTS", "SGD"):
        assert all(f"| {method} | {ranks} |" in text for ranks in (1, 2)), text


TRAINING = ["--data.path", "data/tiny", "--model.widths", "4", "--stop.epochs", "1000000", "--stop.wall_time", "8"]


def until(place: Path, number: str, words: str, times: int = 1) -> str:
    """The log of a requeued job when it holds ``words``; a job that ends before fails the test."""
    log, start = place / f"apts-requeue-{number}.log", time.monotonic()
    while time.monotonic() - start < LIMIT / 2:
        text = log.read_text() if log.exists() else ""
        if text.count(words) >= times:
            return text
        state = ended(["squeue", "-h", "-j", number, "-o", "%T"], place, 30).stdout.strip()
        assert state in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING"), text
        time.sleep(0.5)
    raise AssertionError(f"{words!r} is not in the log of job {number}: {text}")


def test_a_job_goes_back_to_the_queue_once_and_then_ends(place: Path) -> None:
    signalled = ["scancel", "--signal=USR1", "--batch"]
    with submitted(place, "--time=5", "jobs/requeue.sbatch", *TRAINING, "--run.dir", "runs/again") as number:
        until(place, number, "apts_mpi: train")
        assert ended([*signalled, number], place, 30).returncode == 0
        text = until(place, number, "apts_mpi: train", times=2)
        assert ended([*signalled, number], place, 30).returncode == 0
        told = outcome(place, number)
        text = (place / f"apts-requeue-{number}.log").read_text()
    starts = [line for line in text.splitlines() if line.startswith("requeue: ")]
    last = "requeue: no start is left, going on to the end"
    assert starts == ["requeue: start 1 of at most 2", "requeue: start 2 of at most 2", last], text
    assert (told["JobState"], told["ExitCode"], told["Restarts"]) == ("COMPLETED", "0:0", "1"), text
    assert json.loads((place / "runs/again/completion.json").read_text())["ranks"] == 2
    assert not (place / "runs/again/earlier-1/completion.json").exists(), "the first start was cut off"
