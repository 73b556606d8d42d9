"""The thread of the watchdog: how it starts, what it does in turn, and how it leaves nothing behind."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from apts_mpi.parallel import last_resort
from apts_mpi.parallel.pulse import process_state
from apts_mpi.parallel.watch_judge import Judge
from apts_mpi.parallel.watch_net import Beat, Kind, Net

if TYPE_CHECKING:
    from apts_mpi.parallel.comm import MpiCommunicator
    from apts_mpi.safety import SafetyConfig

PHASES = ("set-up", "run")
VERBS = (
    "none", "sum_", "start_sum", "finish_sum", "broadcast_", "share", "gather", "collect", "barrier", "choose_reducer", "device_reducer",
)  # fmt: skip
EXIT_CODE = 4


class Ender(Protocol):
    """What ends all ranks: ``guard.Guard``."""

    announce: Callable[[], None]

    def abort(self, words: str, courtesy: float = 0.0, code: int = EXIT_CODE, details: Callable[[], str] | None = None) -> None:
        """Write ``words``, then ``details()``, and end all ranks."""


class Watchdog:
    """Nobody watches: one rank, or ``safety.watchdog`` is off.

    ``progress`` may be set: a number that changes while this rank gets on outside collective calls; another thread asks.
    """

    progress: Callable[[], int] = staticmethod(lambda: 0)

    def phase(self, name: str) -> None:
        """From now on the deadline of ``name`` (one of PHASES) holds; each rank calls for itself."""
        if name not in PHASES:
            raise ValueError(f"unknown watchdog phase {name!r}; the phases are {', '.join(PHASES)}")

    def close(self) -> None:
        """Say goodbye and end; not collective."""


class Watcher(Watchdog):
    """The thread of one rank."""

    def __init__(self, comm: MpiCommunicator, safety: SafetyConfig, ender: Ender, net: Net) -> None:
        self._pulse, self._ender, self._net = comm.pulse, ender, net
        self._rank, self._phase, self._pid = comm.rank, 0, os.getpid()
        self._deadlines = (safety.deadline_setup, safety.deadline)
        # Two records a second; fewer of very many ranks, more for a short deadline.
        self._period = min(max(0.5, comm.size / 500), min(self._deadlines) / 8)
        self._judge = self._make_judge(comm)
        self._stopping = self._announced = False
        self._due = self._armed = 0.0
        self._turned = time.monotonic()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        _watchers.append(self)

    def start(self) -> None:
        """Begin to watch."""
        self._ender.announce = self._announce
        self._thread.start()

    def phase(self, name: str) -> None:
        super().phase(name)
        self._phase = PHASES.index(name)

    def close(self) -> None:
        if os.getpid() != self._pid or self._stopping:
            return
        self._stopping = True
        self._net.ring()
        self._thread.join(10.0)
        self._ender.announce = _nothing
        _watchers.remove(self)

    def forget(self) -> None:
        """In a forked child: the thread is not there, the connections are the parent's."""
        self._net.close()

    def _announce(self) -> None:
        """This rank has told what is wrong and is about to end all: nobody needs to wonder where it is. Any thread may call."""
        self._announced = True
        self._net.ring()

    def _watch(self) -> None:
        told = False
        while not self._stopping:
            self._listen(self._due - time.monotonic())
            now = time.monotonic()
            if self._announced and not told:
                told = True
                self._say(Kind.ABORTING)
            if now - self._turned > 3 * self._period + 1.0:  # this process stood still
                self._shift(now - self._turned)
            self._turned = now
            if now >= self._due:
                self._due = now + self._period
                self._arm(now)
                self._look(now)
        if not self._announced:
            last_resort.show_after(0.0)
            self._say(Kind.GOODBYE)
        self._farewell(time.monotonic() + 0.5)
        self._net.close()

    def _arm(self, now: float) -> None:
        """Last resort: a main thread that holds the interpreter lock stops this one; then a C thread shows the stacks."""
        shortest = self._deadlines[self._phase]
        if not self._announced and now - self._armed > shortest / 4:
            self._armed = now
            last_resort.show_after(shortest)

    def _beat(self) -> Beat:
        pulse = self._pulse
        left = pulse.left  # first: a verb that ends between the two lines counts as one that goes on
        verb = VERBS.index(pulse.verb) if pulse.verb in VERBS else 0
        return Beat(self._phase, verb, pulse.entered, left, self.progress() & 0xFFFF_FFFF_FFFF_FFFF)

    def _make_judge(self, comm: MpiCommunicator) -> Judge:
        host = comm.host
        return Judge(
            comm.size, PHASES, self._deadlines, VERBS, 2 * self._period,
            lambda other, pid: process_state(pid) if other == host else "", waits=1.0 if comm.rank == 0 else 2.0,
        )  # fmt: skip

    def _listen(self, seconds: float) -> None:
        self._net.ready(seconds)

    def _look(self, now: float) -> None:
        raise NotImplementedError

    def _shift(self, seconds: float) -> None:
        self._judge.shift(seconds)

    def _say(self, kind: Kind) -> None:
        raise NotImplementedError

    def _farewell(self, until: float) -> None:
        raise NotImplementedError


def _nothing() -> None:
    """Nobody is to be told."""


def _forget_all() -> None:
    for watcher in _watchers:
        watcher.forget()
    _watchers.clear()


_watchers: list[Watcher] = []  # at work in this process
os.register_at_fork(after_in_child=_forget_all)
