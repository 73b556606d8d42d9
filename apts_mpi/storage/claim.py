"""Which folder a run gets, and what becomes of an earlier run there."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from apts_mpi.lock import RunLock
from apts_mpi.regular import naming
from apts_mpi.rundir import LOCK, is_run, parts


def claim(directory: str | Path, name: str, warn: Callable[[str], None]) -> tuple[Path, RunLock]:
    """Make ``directory``, or runs/<time>-<name> if it is empty, and lock it; an earlier run of ours moves into earlier-<i>.

    FileExistsError if it is a file or other files are there, LockError if another process is at work there.
    """
    if not str(directory):
        path = _fresh(Path("runs"), name)
        return path, RunLock.take(path / LOCK, warn=warn)
    path = Path(directory)
    if path.exists() and not path.is_dir():
        raise FileExistsError(f"run.dir {path} is a file; give a new or an empty folder")
    with naming(path):
        path.mkdir(parents=True, exist_ok=True)
    _check(path)
    lock = RunLock.take(path / LOCK, warn=warn)
    with lock.unless_kept() as keep:
        _check(path)  # it may have changed hands
        _move_aside(path)
        keep()
    return path, lock


def _check(path: Path) -> None:
    """FileExistsError if a folder holds something, and no run of ours."""
    with naming(path):
        others = [entry.name for entry in path.iterdir() if entry.name != LOCK and not _leftover(entry.name)]
    if others and not is_run(path) and not all(name.startswith("earlier-") for name in others):
        raise FileExistsError(f"run.dir {path} is not empty and holds no run of apts-mpi; give an empty or a new folder")


def _leftover(name: str) -> bool:
    """Whether this is what a killed process of ours leaves between two files."""
    return name.startswith(".") and (name.endswith(".tmp") or name.startswith(f".{LOCK}."))


def _move_aside(path: Path) -> None:
    """An earlier run and its checkpoints go into earlier-<i>, the completion record first: never a finished run that is half there."""
    found = parts(path)
    if not found:
        return
    aside = next(folder for index in range(1, 10_000) if not (folder := path / f"earlier-{index}").exists())
    with naming(aside):
        aside.mkdir()
        for entry in found:
            shutil.move(entry, aside / entry.name)


def _fresh(root: Path, name: str) -> Path:
    """A new folder root/<time>-<name>; the second run of a second gets -2."""
    if name in ("", ".", "..") or any(mark in name for mark in "/\\\0"):
        raise ValueError(f"run.name must be a plain file name, got {name!r}")
    stem = f"{datetime.now():%Y%m%d-%H%M%S}-{name}"
    for index in range(1, 10_000):
        path = root / (stem if index == 1 else f"{stem}-{index}")
        try:
            with naming(path):
                path.mkdir(parents=True)
            return path
        except FileExistsError:
            continue
    raise FileExistsError(f"{root / stem} exists ten thousand times")
