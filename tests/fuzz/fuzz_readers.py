"""Inside the box: the readers of every file that the package writes, of a folder with one of each (see fuzz_tree)."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import readers

from apts_mpi import settings
from apts_mpi.lock import RunLock
from apts_mpi.rundir import Completion, read_run
from apts_mpi.study.attempt import read_attempt
from apts_mpi.study.collect import read_tuning
from apts_mpi.study.definition import read_study
from apts_mpi.study.machine import read_machine
from apts_mpi.study.points import read_points
from apts_mpi.study.show import show_run


def show(path: Path, run: str = "run") -> str:
    """The whole of ``apts-mpi show``."""
    out = io.StringIO()
    show_run(path / run, out)
    return out.getvalue()


def completion(path: Path) -> str:
    """Whether and how the run ended, and the words that show has for it."""
    found = read_run(path / "run").completion
    assert isinstance(found, Completion)
    show(path)
    return repr(found)


def config(path: Path) -> str:
    return repr(settings.resolve(settings.from_file(path / "run" / "config.toml")).config)


def lock(path: Path) -> str:
    RunLock.take(path / "run" / "lock", warn=lambda text: None).release()
    return "taken"


def attempt(path: Path) -> str:
    """What is damaged counts as no attempt."""
    run = SimpleNamespace(id="one", folder=path / "study" / "runs" / "one")
    found = read_attempt(run)  # type: ignore[arg-type]
    if found is None:
        raise ValueError("one.attempt.json: none")
    return repr(found)


def tuning(path: Path) -> str:
    study = SimpleNamespace(path=path / "study" / "study.toml")
    return repr(read_tuning(study, SimpleNamespace(tuning="tune.json", name="SGD")))  # type: ignore[arg-type]


READERS: dict[str, Callable[[Path], str]] = {
    "dataset": lambda path: readers.dataset(path / "set"),
    "verified": lambda path: readers.verified(path / "set"),
    "parameters": lambda path: readers.parameters(path / "run"),
    "records": lambda path: readers.sealed(path / "run" / "records.h5"),
    "checkpoint": lambda path: readers.checkpoint_1(path / "run" / "checkpoints"),
    "show": show,
    "show cut": lambda path: show(path, "cut"),
    "completion": completion,
    "config": config,
    "lock": lock,
    "study": lambda path: repr(read_study(path / "study" / "study.toml")),
    "points": lambda path: repr(read_points(path / "study")),
    "attempt": attempt,
    "machine": lambda path: repr(read_machine(path / "study" / "calibration")),
    "tuning": tuning,
    "settings": lambda path: repr(settings.resolve(settings.from_file(path)).config),
    "any study": lambda path: repr(read_study(path)),
}
