"""What is known of the last try to make a run, beside the run's folder, and who is at it now."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from apts_mpi.lock import LockError, RunLock
from apts_mpi.regular import SUM, read_summed, with_sum, write_new
from apts_mpi.study.plan import Run

NUMERICAL = 3  # exit code of a run that met too many numbers that are not finite
AGAIN = 75  # exit code of a run that was told to end before its time; it is no failure
LATE, TAKEN, CUT = -1, -2, -3  # in place of an exit code: out of time, another job makes this run, this program was ended meanwhile


@dataclass(frozen=True)
class Attempt:
    """How one try to make a run went."""

    run: str
    code: int  # of the launcher; LATE: it took longer than the study allows
    seconds: float  # wall time with start and end
    copy_bandwidth: float  # bytes/s read and written just before
    oversubscribed: bool
    host: str
    started_utc: str
    command: str


def attempt_path(run: Run) -> Path:
    return run.folder.with_name(run.id + ".attempt.json")


def replace_file(path: Path, text: str) -> None:
    """Write a whole file or nothing."""
    new = path.with_name(path.name + f".{os.getpid()}")
    write_new(new, text.encode())
    os.replace(new, path)


@contextmanager
def held(run: Run, say: Callable[[str], None] = warnings.warn) -> Iterator[str]:
    """Keep other jobs from making the same run meanwhile; gives the words of who does, empty if it is us."""
    path = run.folder.with_name(run.id + ".lock")
    try:
        lock = RunLock.take(path, math.inf, say)  # a run may take hours in which nobody touches the file
    except LockError as error:
        yield str(error.strerror)
        return
    try:
        yield ""
    finally:
        lock.release()


def read_attempt(run: Run) -> Attempt | None:
    """The last attempt; None if there was none, or its file cannot be read."""
    try:
        values = read_summed(attempt_path(run))
        return Attempt(**{name: value for name, value in values.items() if name != SUM})
    except (OSError, ValueError, TypeError):
        return None


def failed(run: Run) -> bool:
    """Whether the last attempt at a run that is not done went wrong; one that was told to end did not."""
    attempt = read_attempt(run)
    return attempt is not None and attempt.code != AGAIN


def write_attempt(run: Run, attempt: Attempt) -> None:
    """Keep ``attempt``, in place of an earlier one."""
    replace_file(attempt_path(run), json.dumps(with_sum(asdict(attempt)), indent=1) + "\n")
