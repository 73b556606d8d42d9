"""The watchdog's threads between real ranks: they leave nothing behind."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable

import pytest
from mpi4py import MPI

from apts_mpi.parallel.comm import MpiCommunicator
from apts_mpi.parallel.watch_thread import Watchdog, Watcher
from apts_mpi.parallel.watchdog import watching
from apts_mpi.safety import SafetyConfig

pytestmark = pytest.mark.mpi

WORLD = MPI.COMM_WORLD.Dup()


def everywhere(good: object, what: object = "") -> None:
    """Fail on every rank, naming those where ``good`` is false."""
    bad = [rank for rank, fine in enumerate(WORLD.allgather(bool(good))) if not fine]
    assert not bad, f"wrong on rank {bad}; here: {what}"


class Recorder:
    """Ends nobody: keeps what was said."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.announce: Callable[[], None] = lambda: None

    def abort(self, words: str, courtesy: float = 0.0, code: int = 4, details: Callable[[], str] | None = None) -> None:
        self.said.append(words + (details() if details else ""))


def test_fifty_starts_leave_no_thread_and_no_descriptor() -> None:
    comm, ender = MpiCommunicator(WORLD), Recorder()
    gc.collect()
    before = None
    for _ in range(50):
        with watching(comm, SafetyConfig(), ender) as watchdog:
            watchdog.phase("run")
            comm.barrier()
        now = (len(os.listdir("/proc/self/fd")), threading.active_count())
        before = before or now
        everywhere(now == before, f"{now} is not {before}")
    everywhere(isinstance(watchdog, Watcher) == (comm.size > 1) and not ender.said, ender.said)


def test_off_when_told_so() -> None:
    comm = MpiCommunicator(WORLD)
    with watching(comm, SafetyConfig(watchdog=False), Recorder()) as watchdog:
        everywhere(type(watchdog) is Watchdog and comm.pulse.entered == 0)
    with pytest.raises(ValueError, match="set-up, run"):
        watchdog.phase("lunch")


def test_without_a_network_each_rank_watches_itself(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    def refuse(*args: object, **keys: object) -> None:
        raise PermissionError("no sockets here")

    comm, ender = MpiCommunicator(WORLD), Recorder()
    monkeypatch.setattr("apts_mpi.parallel.watch_star.socket.create_connection", refuse)
    with watching(comm, SafetyConfig(), ender):
        comm.barrier()
    told = capfd.readouterr().err
    expected = comm.size > 1 and comm.rank > 0
    everywhere(("each watches itself alone (PermissionError: no sockets here)" in told) == expected and not ender.said, told)


def test_verbs_are_counted() -> None:
    comm = MpiCommunicator(WORLD)
    comm.gather([1.0])
    comm.barrier()
    everywhere((comm.pulse.entered, comm.pulse.left, comm.pulse.verb) == (2, 2, "barrier"))
    with pytest.raises(TypeError):
        comm.sum_(None)  # type: ignore[arg-type]
    everywhere((comm.pulse.entered, comm.pulse.left) == (3, 3))
