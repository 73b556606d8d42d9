"""How a host buffer is summed over the ranks in place: MPI_Allreduce, or a fixed pairwise tree."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from apts_mpi.partition import block, tree_sum

if TYPE_CHECKING:
    from mpi4py import MPI

    Cells = np.ndarray[Any, np.dtype[Any]]

PROBES = 8  # more than the 5 calls after which MPICH may change to its shared-memory algorithms


class Reducer(Protocol):
    """Sums in place; every rank calls."""

    name: str

    def __call__(self, cells: Any) -> None:
        """Replace ``cells`` (1-D, contiguous; an array, or a tensor where the reducer is one for devices) by their sum over the ranks."""


class MpiReducer:
    """MPI_Allreduce in pieces of at most ``count_limit`` elements; the order of the sum is the library's."""

    name = "mpi"

    def __init__(self, comm: MPI.Intracomm, count_limit: int) -> None:
        from mpi4py import MPI

        self._comm, self._limit, self._in_place = comm, count_limit, MPI.IN_PLACE

    def __call__(self, cells: Any) -> None:
        if len(cells) <= self._limit:
            self._comm.Allreduce(self._in_place, cells)
            return
        for start in range(0, len(cells), self._limit):
            self._comm.Allreduce(self._in_place, cells[start : start + self._limit])


class TreeReducer:
    """Each rank sums one segment in the fixed pairwise tree over rank order, then all exchange the segments.

    Every element is summed once, so all ranks hold the same bits; a rank sends as many bytes as in
    Rabenseifner's all-reduce, about 2 n. Needs a workspace of one more buffer.
    """

    name = "tree"

    def __init__(self, comm: MPI.Intracomm, count_limit: int, cells: Cells) -> None:
        self._comm, self._limit = comm, count_limit
        segment = -(-min(len(cells), count_limit) // comm.Get_size())
        self._rows = np.empty((comm.Get_size(), segment), cells.dtype)

    def __call__(self, cells: Cells) -> None:
        for start in range(0, len(cells), self._limit):
            self._piece(cells[start : start + self._limit])

    def _piece(self, cells: Cells) -> None:
        size, rank = self._comm.Get_size(), self._comm.Get_rank()
        blocks = [block(len(cells), size, index) for index in range(size)]
        counts, starts = [len(b) for b in blocks], [b.start for b in blocks]
        mine = counts[rank]
        rows = self._rows.reshape(-1)[: size * mine]
        self._comm.Alltoallv([cells, (counts, starts)], [rows, ([mine] * size, [mine * i for i in range(size)])])
        with np.errstate(all="ignore"):  # inf and nan are for the receivers to judge; a warning made an error would leave them waiting
            total = tree_sum(list(rows.reshape(size, mine)), lambda a, b: np.add(a, b, out=a))
        self._comm.Allgatherv(total, [cells, (counts, starts)])


def choose(comm: MPI.Intracomm, wanted: str, count_limit: int, cells: Cells) -> Reducer:
    """The reducer for buffers like ``cells``; every rank calls.

    "auto" tries MPI_Allreduce at exactly this length and keeps it only if all ranks saw the bits of the
    tree every time. Overwrites ``cells`` with zeros.
    """
    mpi = MpiReducer(comm, count_limit)
    if wanted == "mpi":
        return mpi
    tree = TreeReducer(comm, count_limit, cells)
    if wanted == "tree":
        return tree
    differences = np.zeros(1, np.int64)
    twin = np.empty_like(cells)
    for probe in range(PROBES):
        cells[:] = twin[:] = trial_values(len(cells), cells.dtype, seed=probe * comm.Get_size() + comm.Get_rank())
        mpi(cells)
        tree(twin)
        differences += np.count_nonzero(cells != twin)
    MpiReducer(comm, count_limit)(differences)
    cells[:] = 0.0
    return tree if differences[0] else mpi


def trial_values(length: int, dtype: np.dtype[Any], seed: int) -> Cells:
    """Random values over 20 binary orders of magnitude, so that another order of summing shows in the last bits."""
    random = np.random.default_rng(seed)
    period = min(length, 1_000_003)  # repeated: drawing 10^8 numbers would take seconds
    values = random.standard_normal(period) * np.exp2(random.integers(-10, 11, period))
    return np.resize(values.astype(dtype), length)
