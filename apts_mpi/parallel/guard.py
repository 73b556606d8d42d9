"""Nobody is left waiting: one rank that fails or leaves early takes all ranks down.

Under plain ``python`` an uncaught exception, ``sys.exit(0)`` or an early return on one rank leaves the
others in a collective for ever. The guard hooks all three, prints which rank it was and aborts.
"""

from __future__ import annotations

import atexit
import math
import os
import platform
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn

from apts_mpi.interrupt import INTERRUPTED
from apts_mpi.parallel import last_resort
from apts_mpi.parallel.handshake import HandshakeError, ReductionError

if TYPE_CHECKING:
    from mpi4py import MPI


ENVIRONMENT, BUG = 4, 1  # exit codes
COURTESY = 2.0  # s that rank 0 has to speak for all
TURN = 1.0  # s more for each higher rank, so that one of them speaks, not all; FORWARDING, and what a busy machine delays
TURNS = 8  # ranks that take turns
LAST = 6.0  # s in which the rest of an abort must be over
FORWARDING = 0.4  # s for the launcher to pass words on: MPICH's mpiexec drops what is still under way when the abort arrives


class LaunchError(RuntimeError):
    """The ranks were started in a way that cannot work."""


class Guard:
    """Armed from its construction to ``end``; a forked child is left alone.

    Args:
        rank: of this process, by its launcher.
        several: whether the launcher started others, which may wait for this one before MPI is up.
    """

    def __init__(self, rank: int, several: bool) -> None:
        self.rank, self.several = rank, several
        self._world: MPI.Intracomm | None = None
        self._ends: MPI.Intracomm | None = None
        self._owns = self._ended = False
        self._ending = threading.Lock()
        self.announce: Callable[[], None] = lambda: None  # tells the watchdog that the end is near
        self.busy = True  # may others be waiting for this rank in a collective?
        self._pid = os.getpid()
        self._others = sys.excepthook, threading.excepthook
        sys.excepthook, threading.excepthook = self._on_error, self._on_thread_error
        atexit.register(self._on_exit)

    @property
    def armed(self) -> bool:
        """Whether failing now would leave others behind."""
        return not self._ended and os.getpid() == self._pid and (self.several or self._world is not None)

    def join(self, owns: bool) -> None:
        """MPI is up (``owns``: by our doing) and was found in order; every rank calls."""
        from mpi4py import MPI

        if self._world is None:
            self._world, self.rank, self._owns = (MPI.COMM_WORLD, MPI.COMM_WORLD.Get_rank(), owns)
            self._ends = MPI.COMM_WORLD.Dup()  # of its own: must not meet a sum of ranks that are still at work

    def end(self, patience: float) -> None:
        """Wait until every rank is here, then end MPI; abort after ``patience`` seconds. Every rank calls."""
        if self._ends is None or self._world is None:
            return
        _flush()
        request, began, pause = self._ends.Ibarrier(), time.monotonic(), 1e-5
        while not request.Test():
            if time.monotonic() - began > patience:
                self.abort(f"has ended, but some rank did not follow within {patience:g} s; all ranks stop")
            time.sleep(pause)
            pause = min(2 * pause, 0.01)
        self._ended = True
        if self._owns:
            from mpi4py import MPI

            MPI.Finalize()

    def abort(
        self, words: str, courtesy: float = COURTESY, code: int = ENVIRONMENT, details: Callable[[], str] | None = None
    ) -> NoReturn:
        """Write ``words`` behind this rank's name, then ``details()``, and end all ranks with ``code``. Any thread may call.

        When all ranks fail alike rank 0 speaks for them: the others wait ``courtesy`` seconds for its abort.
        """
        if not self._ending.acquire(blocking=False):  # another thread is at it
            time.sleep(LAST)
            os._exit(code)
        if code == INTERRUPTED and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # another one changes nothing
        if courtesy and self.rank:
            courtesy += TURN * min(self.rank - 1, TURNS)
        if self._world is not None:
            last_resort.end_after(courtesy + LAST)  # should the abort itself hang
        self.announce()
        if self.rank:
            time.sleep(courtesy)
        _in_time(_flush)
        _in_time(lambda: _write(f"rank {self.rank} on {platform.node()}: {words.rstrip()}\n"))
        if details is not None:
            more = details().rstrip()
            _in_time(lambda: _write(f"{more}\n"))
        time.sleep(FORWARDING)
        if self._world is not None:
            if code == INTERRUPTED:
                _silence()
            self._world.Abort(code)
        # Others may wait in MPI_Init. MPICH's mpiexec ends them only if this process dies by a signal.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGKILL)
        os._exit(code)

    def _on_error(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not self.armed:
            self._others[0](kind, error, trace)
        else:
            self.abort(_words(kind, error, trace), code=exit_code(error))

    def _on_thread_error(self, args: threading.ExceptHookArgs) -> None:
        if not self.armed or args.exc_value is None or args.exc_type is SystemExit:
            self._others[1](args)
        else:
            name = args.thread.name if args.thread else "?"
            words = _words(args.exc_type, args.exc_value, args.exc_traceback)
            self.abort(f"in thread {name}: {words}", code=exit_code(args.exc_value))

    def _on_exit(self) -> None:
        if not self.armed or self._world is None:  # before MPI is up leaving is fine: --help, wrong options
            return
        if self.busy:
            self.abort("left before the run had ended on all ranks (sys.exit or an early return); all ranks stop")
        self.end(math.inf)


@contextmanager
def waiting(patience: float) -> Iterator[None]:
    """End the process unless the block is left within ``patience`` seconds: a rank may have failed before it got here."""
    # A C thread: MPI_Init holds the interpreter lock. The stack that it prints names this function's caller.
    last_resort.end_after(patience)
    try:
        yield
    finally:
        last_resort.stay()


def exit_code(error: BaseException) -> int:
    """130 after Ctrl-C, 4 where the surroundings are to blame (files, memory, libraries, ranks that differ), 1 where the program is."""
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    surroundings = isinstance(error, OSError | ImportError | MemoryError | HandshakeError | LaunchError | ReductionError)
    return ENVIRONMENT if surroundings or type(error).__name__ == "OutOfMemoryError" else BUG  # that of torch, on a GPU


def _in_time(action: Callable[[], object]) -> None:
    """Run ``action`` for at most a second: what stuck the main thread may be a pipe that nobody reads."""
    if threading.current_thread() is threading.main_thread():
        action()
        return
    thread = threading.Thread(target=action, daemon=True)
    thread.start()
    thread.join(1.0)


def _write(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


def _silence() -> None:
    """From here on nothing that this process writes on stderr is seen: MPI has words of its own for an abort that a person asked for."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _flush() -> None:
    """Hand all output to the launcher while this process still lives."""
    sys.stdout.flush()
    sys.stderr.flush()


def _words(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> str:
    """A traceback, or the message alone where the code is not to blame."""
    if isinstance(error, KeyboardInterrupt):
        return str(error) or "interrupted"
    if isinstance(error, HandshakeError | LaunchError | ReductionError):
        return f"{kind.__name__}: {error}"
    return f"{kind.__name__}: {error}\n" + "".join(traceback.format_exception(kind, error, trace))
