"""Where a rank is: counters that its main thread moves on at no cost, the stacks of its threads, the state of a process.

The watchdog reads all this from a thread of its own while the main thread computes or waits.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, Protocol, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

DEEPEST = 60  # frames of a thread in a stack: the innermost ones
STATES = {
    "R": "running", "S": "sleeping", "D": "waits for a disk or a device", "T": "stopped by a signal", "t": "stopped by a debugger",
    "Z": "has ended", "X": "has ended", "I": "idle",
}  # fmt: skip


class Pulse:
    """How many collective verbs of a communicator this rank has entered and left, and which it entered last."""

    __slots__ = ("entered", "left", "verb", "_pid", "_rank")

    def __init__(self, rank: int) -> None:
        self.entered = self.left = 0
        self.verb = ""
        self._rank, self._pid = rank, os.getpid()

    def enter(self, verb: str) -> None:
        """A verb begins; RuntimeError in a forked child, which shares the parent's MPI connections and would corrupt them."""
        if os.getpid() != self._pid:
            raise RuntimeError(f"rank {self._rank} was forked after MPI had started; talk to other ranks from the parent process only")
        self.verb = verb
        self.entered += 1


class Beating(Protocol):
    """An object whose verbs are counted."""

    @property
    def pulse(self) -> Pulse:
        """Its counters."""


B = TypeVar("B", bound=Beating)


def verb(method: Callable[Concatenate[B, P], R]) -> Callable[Concatenate[B, P], R]:
    """``method``, a collective verb, counted in ``self.pulse`` when it begins and when it ends, an exception included."""
    name = method.__name__.lstrip("_")

    @wraps(method)
    def counted(self: B, /, *args: P.args, **kwargs: P.kwargs) -> R:
        pulse = self.pulse
        pulse.enter(name)
        try:
            return method(self, *args, **kwargs)
        finally:
            pulse.left += 1

    return counted


def stacks() -> str:
    """Where every other Python thread of this process is; reads no source file: the disk may be what hangs."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    lines = []
    for ident, frame in sys._current_frames().items():
        if ident == threading.get_ident():
            continue
        lines.append(f"  thread {names.get(ident, '?')}, innermost call first:")
        depth, at = 0, frame
        while at is not None and depth < DEEPEST:
            lines.append(f"    {at.f_code.co_filename}:{at.f_lineno} in {at.f_code.co_name}")
            at, depth = at.f_back, depth + 1  # type: ignore[assignment]
    return "\n".join(lines)


def process_state(pid: int) -> str:
    """What the kernel of this host says of process ``pid``; "is gone" if there is none, empty where nothing is known."""
    if not os.path.isdir("/proc/self"):
        return ""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            letter = stat.read(4096).rpartition(b")")[2].split()[0].decode()
    except FileNotFoundError:
        return "is gone"
    except (OSError, IndexError):
        return ""
    return f"state {letter}: {STATES.get(letter, 'unknown')}"
