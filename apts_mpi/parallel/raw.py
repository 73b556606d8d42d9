"""What MPI itself takes: the bare in-place sum that benchmarks compare with."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from apts_mpi.contracts import Communicator

    Cells = np.ndarray[Any, np.dtype[Any]]


def raw_sum(comm: Communicator, cells: Cells) -> Callable[[], object]:
    """One in-place MPI_Allreduce of ``cells``, planned; nothing at one rank without MPI. Every rank calls both.

    TypeError for any other communicator, which might do more.
    """
    from apts_mpi.parallel.comm import MpiCommunicator
    from apts_mpi.parallel.serial import SerialCommunicator

    if isinstance(comm, SerialCommunicator):
        return lambda: None
    if not isinstance(comm, MpiCommunicator):
        raise TypeError(f"raw_sum takes the communicator that launch.start gave, got {type(comm).__name__}")
    from mpi4py import MPI

    bare = comm.comm
    return lambda: bare.Allreduce(MPI.IN_PLACE, cells)
