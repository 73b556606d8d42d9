"""What MPI itself takes: the bare in-place sum that benchmarks compare with."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from apts_mpi.contracts import Communicator


def raw_sum(comm: Communicator, length: int, dtype: np.dtype[Any]) -> Callable[[], object]:
    """One in-place MPI_Allreduce of ``length`` zeros, planned; nothing at one rank without MPI. Every rank calls both.

    TypeError for any other communicator, which might do more.
    """
    from apts_mpi.parallel.comm import MpiCommunicator
    from apts_mpi.parallel.serial import SerialCommunicator

    if isinstance(comm, SerialCommunicator):
        return lambda: None
    if not isinstance(comm, MpiCommunicator):
        raise TypeError(f"raw_sum takes the communicator that launch.start gave, got {type(comm).__name__}")
    from mpi4py import MPI

    cells, bare = np.zeros(length, dtype), comm.comm
    return lambda: bare.Allreduce(MPI.IN_PLACE, cells)
