"""jobs/requeue.sbatch: what it starts, when it asks for another start and when not, with stand-ins for Slurm's commands."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOLS = {  # of a job's shell: each writes down how it was called
    "python": 'echo "python $*" >>said; for _ in $(seq "${WORK:-0}"); do sleep 0.1; done; exit "${CODE:-0}"',
    "srun": '[ "$1" = --mpi=none ] && { echo cleans >>said; exit; }; shift 2; exec "$@"',
    "scontrol": 'echo "scontrol $*" >>said',
}


def requeue(place: Path, *words: str, usr1: bool = False, **environ: str) -> tuple[int, str, list[str]]:
    """Exit code and output of jobs/requeue.sbatch, and what its tools were called with; with or without USR1 while it works."""
    (place / "jobs").mkdir()
    (place / "jobs" / "env.sh").touch()
    (place / "study.toml").write_text('name = "s"\n[[method]]\nname = "APTS"\n')
    (place / "run.toml").write_text("[stop]\nepochs = 3\n")
    for name, text in TOOLS.items():
        (place / name).write_text(f"#!/bin/bash\n{text}\n")
        (place / name).chmod(0o700)
    given = {"PATH": f"{place}{os.pathsep}/usr/bin:/bin", "SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2", **environ}
    command = ["bash", str(ROOT / "jobs" / "requeue.sbatch"), *words]
    job = subprocess.Popen(command, cwd=place, env=given, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    start = time.monotonic()
    while usr1 and not ((place / "said").exists() and "python" in (place / "said").read_text()):
        assert job.poll() is None and time.monotonic() - start < 20
        time.sleep(0.01)
    if usr1:
        os.kill(job.pid, signal.SIGUSR1)
    output, _ = job.communicate(timeout=20)
    return job.returncode, output, (place / "said").read_text().splitlines() if (place / "said").exists() else []


STUDY_CALL = "python -m apts_mpi scale run study.toml --nodes 2 --launcher srun --kill-on-bad-exit=1 -ul"
TRAIN_CALL = "python -m apts_mpi train run.toml --stop.epochs 5"


def test_requeue_goes_on_with_a_study_and_begins_a_training_again(tmp_path: Path) -> None:
    assert requeue(tmp_path, "study.toml")[::2] == (0, [STUDY_CALL])
    other = tmp_path / "other"
    other.mkdir()
    assert requeue(other, "run.toml", "--stop.epochs", "5", SLURM_RESTART_COUNT="1")[::2] == (0, ["cleans", TRAIN_CALL])


@pytest.mark.parametrize(
    ("file", "environ", "again"),
    [
        ("study.toml", {"SLURM_RESTART_COUNT": "4"}, True),
        ("study.toml", {"SLURM_RESTART_COUNT": "5"}, False),
        ("run.toml", {}, True),
        ("run.toml", {"SLURM_RESTART_COUNT": "1"}, False),
        ("run.toml", {"SLURM_RESTART_COUNT": "1", "MAX_RESTARTS": "2"}, True),
        ("run.toml", {"MAX_RESTARTS": "0"}, False),
    ],
)
def test_requeue_asks_for_another_start_while_some_are_left(
    file: str, environ: dict[str, str], again: bool, tmp_path: Path
) -> None:  # fmt: skip
    code, output, said = requeue(tmp_path, file, usr1=True, WORK="5", CODE="3", **environ)
    assert code == 3, "the exit code is the command's, not the signal's"
    assert ("scontrol requeue 7" in said) == again
    assert ("requeue: no start is left, going on to the end" in output) != again


def test_requeue_does_not_start_beyond_its_limit(tmp_path: Path) -> None:
    code, output, said = requeue(tmp_path, "run.toml", SLURM_RESTART_COUNT="2")
    assert code == 1 and not said
    assert "MAX_RESTARTS is 1, so this is no start" in output
