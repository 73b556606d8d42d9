"""On a real Slurm: a study through jobs/strong.sbatch and `scale submit` to its report."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from slurm_cases import LIMIT, ended, on_slurm, outcome, submitted

pytestmark = [*on_slurm[:1], pytest.mark.timeout(700)]
SLOW = 300.0  # s for a job that calibrates first, on a machine that is busy with others
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
"""


def apts(place: Path, *words: str, limit: float = LIMIT) -> subprocess.CompletedProcess[str]:
    return ended([sys.executable, "-m", "apts_mpi", *words], place, limit)


def finished(place: Path) -> set[str]:
    return {path.parent.name for path in (place / "studies/tiny/runs").glob("*/completion.json")}


def test_a_study_goes_from_an_array_by_hand_through_submit_to_its_report(place: Path) -> None:
    (place / "tiny.toml").write_text(STUDY)
    by_hand = ["--time=5", "--array=0,3", "jobs/strong.sbatch", "tiny.toml"]
    with submitted(place, *by_hand) as number:
        told = [outcome(place, f"{number}_{index}", SLOW) for index in (0, 3)]
    logs = "".join(path.read_text() for path in place.glob("apts-strong-*.log"))
    assert [each["JobState"] for each in told] == ["COMPLETED"] * 2, logs
    first = finished(place)
    assert len(first) == 4 and {name[-4:] for name in first} == {"rep0", "rep3"}, "2 rank counts, 2 repetitions"
    times = {name: (place / f"studies/tiny/runs/{name}/completion.json").stat().st_mtime_ns for name in first}

    dry = apts(place, "scale", "submit", "tiny.toml", "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert "--dependency=afterany:" in dry.stdout
    assert "#SBATCH --array=1,2,4 " in (place / "studies/tiny/jobs/nodes-1.sbatch").read_text(), "0 and 3 are there"
    answer = apts(place, "scale", "submit", "tiny.toml")
    assert answer.returncode == 0, answer.stderr
    report = re.findall(r"\b\d{5,}\b", answer.stdout)[-1]
    told = [outcome(place, report, SLOW)]
    logs = "".join(path.read_text() for path in (place / "studies/tiny/jobs").glob("*.log"))
    assert (told[0]["JobState"], told[0]["ExitCode"]) == ("COMPLETED", "0:0"), logs
    assert len(finished(place)) == 10, logs
    assert times == {name: (place / f"studies/tiny/runs/{name}/completion.json").stat().st_mtime_ns for name in first}, "made twice"
    points = json.loads((place / "studies/tiny/points.json").read_text())
    assert {point["run"] for point in points["points"]} == finished(place) and not points["failed"]
    assert {point["ranks"] for point in points["points"]} == {1, 2}
    text = (place / "studies/tiny/report/report.md").read_text()
    assert "10 of 10 runs finished, 0 failed" in text
    assert all(f"| APTS | {ranks} |" in text for ranks in (1, 2)), text
