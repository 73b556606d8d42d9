"""A thread per rank, beside MPI, that finds ranks which are stuck, stopped, vanished or gone, shows all stacks and ends the run.

Rank 0 hears from all others over TCP (``watch_star``) and judges (``watch_judge``). If rank 0 itself is silent each
rank decides alone. The main thread pays nothing: it moves counters on (``pulse``), the watchdog reads them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from apts_mpi.parallel.watch_rank import Centre, Outpost
from apts_mpi.parallel.watch_star import Ray, Star, own_addresses
from apts_mpi.parallel.watch_thread import Ender, Watchdog, Watcher

if TYPE_CHECKING:
    from apts_mpi.contracts import Communicator
    from apts_mpi.parallel.comm import MpiCommunicator
    from apts_mpi.safety import SafetyConfig

__all__ = ["Watchdog", "watching"]


@contextmanager
def watching(comm: Communicator, safety: SafetyConfig, ender: Ender | None = None) -> Iterator[Watchdog]:
    """Watch the ranks of ``comm`` while the block runs; every rank calls, and makes the same collective calls inside.

    Args:
        safety: the same on all ranks.
        ender: ends all ranks; default: the guard of ``launch``. Without one, and at one rank, nobody watches.
    """
    from apts_mpi.parallel import launch

    bare, ender = _bare(comm), ender or launch.guard()
    if bare is None or ender is None or bare.size == 1 or not safety.watchdog:
        yield Watchdog()
        return
    watcher = _set_up(bare, safety, ender)
    try:
        yield watcher
    finally:
        watcher.close()


def _set_up(comm: MpiCommunicator, safety: SafetyConfig, ender: Ender) -> Watcher:
    """The watcher of this rank, connected and at work when all ranks are here."""
    star = trouble = None
    if comm.rank == 0:
        try:
            star = Star(comm.size, comm.local_size == comm.size)
        except OSError as error:
            trouble = error
    addresses = ["127.0.0.1"] if comm.local_size == comm.size else own_addresses()
    told = comm.share(" ".join([comm.host, str(os.getpid()), str(star.port), star.token.hex(), *addresses]) if star else "").split()
    watcher: Watcher
    if star:
        watcher = Centre(comm, safety, ender, star)
    else:
        ray = None
        if told:
            host, pid, port, token, *addresses = told
            try:
                ray = Ray(addresses, int(port), bytes.fromhex(token), comm.rank, os.getpid(), comm.host)
            except OSError as error:
                trouble = error
        watcher = Outpost(comm, safety, ender, ray, (told[0], int(told[1])) if told else ("?", 0))
    if trouble:
        _say_alone(comm, trouble)
    watcher.start()
    comm.barrier()
    return watcher


def _say_alone(comm: MpiCommunicator, trouble: OSError) -> None:
    words = "watchdog: no connection between the ranks, each watches itself alone"
    sys.stderr.write(f"rank {comm.rank} on {comm.host}: {words} ({type(trouble).__name__}: {trouble})\n")


def _bare(comm: Communicator) -> MpiCommunicator | None:
    """The communicator over MPI inside all wrappers."""
    from apts_mpi.parallel.comm import MpiCommunicator
    from apts_mpi.parallel.wrapper import WrappedCommunicator

    while isinstance(comm, WrappedCommunicator):
        comm = comm.inner
    return comm if isinstance(comm, MpiCommunicator) else None
