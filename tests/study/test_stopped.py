"""A study that is told to end: the run under way stops, no other is begun, and the same command goes on."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from study_cases import write_data, write_study

from apts_mpi.scale import make
from apts_mpi.study import attempt, execute
from apts_mpi.study.definition import read_study
from apts_mpi.study.plan import plan

HEARS = """import os, signal, sys, time
signal.signal(signal.SIGUSR1, lambda number, frame: sys.exit(75))
open(sys.argv[1], "a").write("begun ")
time.sleep(60 * (len(sys.argv) > 2 and sys.argv[2] == "waits"))
sys.exit(75)
"""


@pytest.mark.parametrize("warned", [False, True], ids=["by the run", "to us"])
def test_when_the_job_ends_soon_no_other_run_is_begun(tmp_path: Path, warned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execute, "PATIENCE", 0.0)
    path = write_study(tmp_path)
    runs = plan(read_study(path))[:3]
    (tmp_path / "hears.py").write_text(HEARS)
    ran = tmp_path / "ran"
    hears = shlex.join([sys.executable, str(tmp_path / "hears.py"), str(ran), "waits" if warned else "ends"])
    lines = list[str]()
    executor = execute.Executor(read_study(path), hears, lines.append)

    def warn() -> None:
        while not (ran.exists() and ran.read_text()):
            time.sleep(0.01)
        executor.warn()

    threads = [threading.Thread(target=warn)] * warned
    for thread in threads:
        thread.start()
    began = time.monotonic()
    assert executor.make(runs) == runs and executor.ending
    assert time.monotonic() - began < 30 and ran.read_text() == "begun ", "the others are left for the next start"
    assert len(lines) == 2 and lines[1].endswith("stopped before its end")
    for thread in threads:
        thread.join()


IMPATIENT = """import sys
from apts_mpi.__main__ import main
from apts_mpi.study import execute
execute.PATIENCE = 0  # with others who are at work here
sys.exit(main())
"""
ENDLESS = """
name = "endless"
folder = "{folder}/out"
ranks = [2]
scaling = ["strong"]
samples = 40
oversubscribe = true
[settings]
data.path = "{folder}/set"
data.batch = 20
model.widths = [4]
stop.epochs = 0
stop.iterations = 1000000
[[method]]
name = "First"
[[method]]
name = "Second"
"""


def until(ready: Callable[[], Sequence[Any]], study: subprocess.Popen[str]) -> Sequence[Any]:
    """What ``ready`` gives as soon as it gives something; a study that ends before, or takes too long, fails the test."""
    began = time.monotonic()
    while not (found := ready()):
        assert study.poll() is None and time.monotonic() - began < 60
        time.sleep(0.02)
    return found


def ranks_of(config: Path) -> list[int]:
    """The processes that train with the settings ``config``, without their launcher."""
    ours = ["-m", "apts_mpi", "train", str(config)]
    return [int(path.parent.name) for path in Path("/proc").glob("[0-9]*/cmdline") if words_of(path)[1:] == ours]


def words_of(path: Path) -> list[str]:
    try:
        return path.read_text().split("\0")[:-1]
    except OSError:  # it has just ended
        return []


@pytest.mark.fault(46)
def test_a_run_that_is_signalled_ends_the_study_and_is_made_again_from_its_start(tmp_path: Path) -> None:
    write_data(tmp_path)
    path = write_study(tmp_path, ENDLESS)
    first, second = (run for run in plan(read_study(path)) if run.repetition == 1)
    first, second = sorted((first, second), key=lambda run: run.method.name == "First")  # the other one begins in repetition 1
    command = [sys.executable, "-c", IMPATIENT, "scale", "run", str(path), "--repetition", "1"]  # the first one would calibrate
    records = first.folder / "records.csv"
    told = list[str]()
    for to_rank in (True, False):
        study = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            if not to_rank:
                until(lambda: list((first.folder / "earlier-1").glob(records.name)), study)
            until(lambda: [1] * (records.exists() and records.read_text().count("\n") > 3), study)
            ranks = until(lambda: ranks_of(first.folder.with_name(first.id + ".toml")), study)
            os.kill(*((ranks[-1], signal.SIGUSR1) if to_rank else (study.pid, signal.SIGTERM)))
            output, _ = study.communicate(timeout=30)
        finally:
            study.kill()
        assert study.returncode == attempt.AGAIN, output + execute.last_words(first)
        assert "stopped before its end" in output and "2 of 2 runs are left; the same command goes on" in output
        assert not ranks_of(first.folder.with_name(first.id + ".toml")) and not second.folder.exists()
        assert not first.done and make.state(first) == make.state(second) == "missing"
        told.append(records.read_text())
    assert (first.folder / "earlier-1" / "records.csv").read_text() == told[0], "from its start, the earlier one moved aside"
    assert not list(first.folder.glob("resumed-*"))
    for text in told:
        assert text.splitlines()[1].startswith("0,")
