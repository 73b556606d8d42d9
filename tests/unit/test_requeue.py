"""jobs/requeue.sbatch: what it starts, when it asks for another start and when not, with stand-ins for Slurm's commands."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from apts_mpi import cli

ROOT = Path(__file__).parents[2]
TOOLS = {  # of a job's shell: each writes down how it was called; the command hears USR1 as our ranks do
    "python": """echo "python $* dir=${APTS_RUN__DIR:-} resume=${APTS_RUN__RESUME:-}" >>said
trap 'echo "python hears USR1" >>said; exit "${CODE:-0}"' USR1
for _ in $(seq "${WORK:-0}"); do sleep 0.1; done; exit "${CODE:-0}\"""",
    "srun": '[ "$1" = --mpi=none ] && { echo cleans >>said; exit; }; shift 2; exec "$@"',
    "scontrol": 'echo "scontrol $*" >>said',
}
STUDY_CALL = "python -m apts_mpi scale run study.toml --nodes 2 --launcher srun --kill-on-bad-exit=1 -ul dir=runs/job-7 resume=auto"
TRAIN_CALL = "python -m apts_mpi train run.toml --stop.epochs 5 dir=runs/job-7 resume=auto"


def requeue(place: Path, *words: str, heard: int = 0, **environ: str) -> tuple[int, str, list[str]]:
    """Exit code and output of jobs/requeue.sbatch, and what its tools were called with; it may hear a signal while it works."""
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
    while heard and not ((place / "said").exists() and "python" in (place / "said").read_text()):
        assert job.poll() is None and time.monotonic() - start < 20
        time.sleep(0.01)
    if heard:
        os.kill(job.pid, heard)
    output, _ = job.communicate(timeout=20)
    return job.returncode, output, (place / "said").read_text().splitlines() if (place / "said").exists() else []


def test_what_is_finished_does_not_go_back(tmp_path: Path) -> None:
    assert requeue(tmp_path, "study.toml")[::2] == (0, [STUDY_CALL])
    other = tmp_path / "other"
    other.mkdir()
    assert requeue(other, "run.toml", "--stop.epochs", "5", SLURM_RESTART_COUNT="1")[::2] == (0, ["cleans", TRAIN_CALL])


@pytest.mark.fault(46)
@pytest.mark.parametrize("file", ["study.toml", "run.toml"])
@pytest.mark.parametrize(
    ("environ", "again"),
    [({}, True), ({"SLURM_RESTART_COUNT": "4"}, True), ({"SLURM_RESTART_COUNT": "5"}, False), ({"MAX_RESTARTS": "0"}, False)],
)
def test_what_was_saved_before_its_end_goes_back_while_starts_are_left(
    file: str, environ: dict[str, str], again: bool, tmp_path: Path
) -> None:  # fmt: skip
    code, output, said = requeue(tmp_path, file, CODE="75", **environ)
    assert ("scontrol requeue 7" in said) == again
    assert ("requeue: no start is left; sbatch again with APTS_RUN__DIR=runs/job-7" in output) != again
    assert code == 75


@pytest.mark.parametrize("failure", ["1", "2", "3", "4", "137"])
def test_any_other_exit_code_is_handed_on(failure: str, tmp_path: Path) -> None:
    code, output, said = requeue(tmp_path, "run.toml", CODE=failure)
    assert code == int(failure) and len(said) == 1 and "scontrol" not in output


@pytest.mark.parametrize(("code", "calls"), [("75", ["scontrol requeue 7"]), ("0", [])])
def test_a_warning_to_the_shell_alone_is_handed_on(code: str, calls: list[str], tmp_path: Path) -> None:
    ended, _, said = requeue(tmp_path, "run.toml", "--stop.epochs", "5", heard=signal.SIGUSR1, WORK="50", CODE=code)
    assert ended == int(code) and said == [TRAIN_CALL, "python hears USR1", *calls]


def test_who_is_told_to_end_waits_for_the_ranks_and_does_not_go_back(tmp_path: Path) -> None:
    code, output, said = requeue(tmp_path, "run.toml", "--stop.epochs", "5", heard=signal.SIGTERM, WORK="5", CODE="75")
    assert code == 75 and said == [TRAIN_CALL]
    assert "requeue: told to end, by someone who says what comes next" in output


def test_a_folder_of_ones_own_stays(tmp_path: Path) -> None:
    said = requeue(tmp_path, "run.toml", APTS_RUN__DIR="runs/mine")[2]
    assert said == ["python -m apts_mpi train run.toml dir=runs/mine resume=auto"]


@pytest.mark.parametrize("words", [("--resume", "old"), ("--resume=old",)])
def test_a_run_to_be_resumed_is_never_started_afresh(words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.toml").write_text("[stop]\nepochs = 3\n")
    said = requeue(tmp_path, *words)[2]
    assert said == [f"python -m apts_mpi train {' '.join(words)} dir=runs/job-7 resume=auto"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("APTS_RUN__DIR", "runs/job-7")
    monkeypatch.setenv("APTS_RUN__RESUME", "auto")
    plain, options = cli.split_options(["train", *words], ("resume",))
    config = cli.read_settings(None, options, plain[1].partition("=")[2] or plain[2]).config
    assert (config.run.dir, config.run.resume, config.stop.epochs) == ("old", "must", 3)


@pytest.mark.fault(46)
def test_requeue_does_not_start_beyond_its_limit(tmp_path: Path) -> None:
    code, output, said = requeue(tmp_path, "run.toml", SLURM_RESTART_COUNT="6")
    assert code == 1 and not said
    assert "MAX_RESTARTS is 5, so this is no start" in output
