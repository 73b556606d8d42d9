"""Sums that go on while the rank computes: parts of a planned message, started one by one and waited for together.

Every part is summed elementwise, so with the pairwise tree, and with MPI at two ranks, the bits are those
of one sum of the whole message, however it is cut.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from apts_mpi.partition import block, tree_sum

if TYPE_CHECKING:
    from mpi4py import MPI

    Cells = np.ndarray[Any, np.dtype[Any]]


class Started(Protocol):
    """Sums under way; every rank calls, with cells of the same lengths in the same order."""

    def start(self, cells: Cells) -> None:
        """Begin to replace ``cells`` by their sum over the ranks; they belong to MPI until ``finish``."""

    def finish(self) -> None:
        """Wait until all are summed."""


class StartedByMpi:
    """MPI_Iallreduce in pieces of at most ``limit`` elements; the order of a sum is the library's."""

    def __init__(self, comm: MPI.Intracomm, limit: int) -> None:
        from mpi4py import MPI

        self._comm, self._limit, self._mpi = comm, limit, MPI
        self._requests: list[MPI.Request] = []

    def start(self, cells: Cells) -> None:
        """Begin, and let MPI move what was begun before: many libraries move data inside their calls only."""
        for start in range(0, len(cells), self._limit):
            self._requests.append(self._comm.Iallreduce(self._mpi.IN_PLACE, cells[start : start + self._limit]))
        self._mpi.Request.Testall(self._requests)

    def finish(self) -> None:
        """Wait for all."""
        self._mpi.Request.Waitall(self._requests)
        self._requests.clear()


class StartedTree:
    """The segments' terms travel while the rank computes; adding them in the pairwise tree and sharing the sums is left to ``finish``."""

    def __init__(self, comm: MPI.Intracomm, limit: int) -> None:
        from mpi4py import MPI

        self._comm, self._limit, self._mpi = comm, limit, MPI
        self._pieces: list[tuple[Cells, Cells, MPI.Request]] = []
        self._spare: dict[tuple[int, str], list[Cells]] = {}  # workspaces by size, used again at every step

    def start(self, cells: Cells) -> None:
        """Send every rank its segment of the terms."""
        for start in range(0, len(cells), self._limit):
            piece = cells[start : start + self._limit]
            counts, starts = self._segments(piece)
            mine, size = counts[self._comm.Get_rank()], self._comm.Get_size()
            rows = self._workspace(size * mine, piece.dtype)
            into = [rows, ([mine] * size, [mine * i for i in range(size)])]
            self._pieces.append((piece, rows, self._comm.Ialltoallv([piece, (counts, starts)], into)))
        self._mpi.Request.Testall([request for _, _, request in self._pieces])

    def finish(self) -> None:
        """Add the terms as they come, share the sums, wait for all."""
        size, sharing = self._comm.Get_size(), []
        for piece, rows, request in self._pieces:
            request.Wait()
            with np.errstate(all="ignore"):  # inf and nan are for the receivers to judge; a warning made an error would leave them waiting
                total = tree_sum(list(rows.reshape(size, -1)), lambda a, b: np.add(a, b, out=a))
            sharing.append(self._comm.Iallgatherv(total, [piece, self._segments(piece)]))
        self._mpi.Request.Waitall(sharing)
        for _, rows, _ in self._pieces:
            self._spare[len(rows), rows.dtype.str].append(rows)
        self._pieces.clear()

    def _segments(self, piece: Cells) -> tuple[list[int], list[int]]:
        """How many cells each rank sums, and where they start."""
        size = self._comm.Get_size()
        blocks = [block(len(piece), size, index) for index in range(size)]
        return [len(b) for b in blocks], [b.start for b in blocks]

    def _workspace(self, length: int, dtype: np.dtype[Any]) -> Cells:
        spare = self._spare.setdefault((length, dtype.str), [])
        return spare.pop() if spare else np.empty(length, dtype)


def choose_started(comm: MPI.Intracomm, reduction: str, limit: int) -> Started:
    """How parts are summed under a ``comm.reduction``: by MPI where the order cannot matter or does not have to, else in the tree."""
    return StartedByMpi(comm, limit) if reduction == "mpi" or (reduction == "auto" and comm.Get_size() <= 2) else StartedTree(comm, limit)
