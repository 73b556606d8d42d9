"""The communicator over MPI: preallocated flat buffers, upper-case (unpickled) calls, counted.

Law: every method is collective. The ranks of one MPI communicator call the same methods in the same
order; nothing raises on one rank alone between two of them. ``pulse`` counts the verbs for the watchdog.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from apts_mpi.parallel.handshake import HandshakeError, difference
from apts_mpi.parallel.pulse import Pulse, verb
from apts_mpi.parallel.reduce import MpiReducer, Reducer, choose
from apts_mpi.parallel.serial import checked, checked_part
from apts_mpi.parallel.started import choose_started
from apts_mpi.parallel.transport import TRANSPORTS, MpiDevice, Nccl, check_sum

if TYPE_CHECKING:
    from mpi4py import MPI
    from numpy.typing import NDArray
    from torch import Tensor, device, dtype

    from apts_mpi.contracts import Message, Real
    from apts_mpi.parallel.message import FlatMessage


def library_name(text: str) -> str:
    """Name and version from MPI_Get_library_version: "Open MPI v5.0.11", "MPICH Version: 5.0.2"."""
    return " ".join(text.replace("\0", " ").strip().splitlines()[0].split(", package")[0].split())


class MpiCommunicator:
    """``contracts.Communicator`` over an mpi4py intracommunicator that nobody else talks on.

    Args:
        comm: ranks that take part; building the object is collective.
        reduction: "mpi" (MPI_Allreduce), "tree" (fixed pairwise tree: for 2^k subdomains the same bits on every 2^j
            ranks) or "auto" (MPI_Allreduce where a trial at plan() shows that it gives the bits of the tree).
        count_limit: elements in one MPI call.
        transport: how messages on a GPU travel, see ``transport``; on the device the reduction is the library's.
    """

    def __init__(self, comm: MPI.Intracomm, reduction: str = "auto", count_limit: int = 2**30, transport: str = "host") -> None:
        from mpi4py import MPI

        self.comm = comm
        self._nccl: Nccl | None = None
        self.configure(reduction, count_limit, transport)
        self.rank, self.size, self.host = comm.Get_rank(), comm.Get_size(), MPI.Get_processor_name()
        node = comm.Split_type(MPI.COMM_TYPE_SHARED, self.rank)
        self.local_rank, self.local_size = node.Get_rank(), node.Get_size()
        node.Free()
        self.library = library_name(MPI.Get_library_version())
        self.large = self.small = self.bytes = 0
        self.reductions: dict[str, str] = {}  # provenance: the reducer chosen for each kind of message
        self.pulse = Pulse(self.rank)

    @property
    def messages(self) -> int:
        """Sums so far, large and small; also counted at one rank, where ``bytes`` stays 0."""
        return self.large + self.small

    def configure(self, reduction: str, count_limit: int, transport: str = "host") -> None:
        """How messages planned from now on are summed."""
        if reduction not in ("auto", "mpi", "tree"):
            raise ValueError(f"comm.reduction must be auto, mpi or tree, got {reduction!r}")
        if count_limit < 1:
            raise ValueError(f"comm.count_limit must be at least 1, got {count_limit}")
        if transport not in TRANSPORTS or (transport != "host" and reduction == "tree"):
            raise ValueError(f"comm.transport must be host, or with another reduction than tree device or nccl, got {transport!r}")
        self.reduction, self.count_limit, self.transport = reduction, count_limit, transport
        self._small = MpiReducer(self.comm, count_limit)  # lanes and flags are exact in any order
        self._started = choose_started(self.comm, reduction, count_limit)

    def plan(self, n_params: int, dtype: dtype, device: device, scalars: Sequence[str]) -> FlatMessage:
        """Allocate a message and choose how it is summed; HandshakeError unless all ranks plan the same."""
        from apts_mpi.parallel.message import FlatMessage

        kind = f"{n_params} {str(dtype).removeprefix('torch.')} + scalars {', '.join(scalars) or 'none'}"
        self.agree("message", kind)
        message = FlatMessage(n_params, dtype, device, scalars, staged=self.transport == "host")
        if self.size > 1:
            reducer = self._choose_reducer(message) if message.staged else self._device_reducer(message)
            message.reduce, self.reductions[kind] = reducer, reducer.name
        return message

    @verb
    def _device_reducer(self, message: FlatMessage) -> Reducer:
        reducer: Reducer = MpiDevice(self.comm, self.count_limit)
        if self.transport == "nccl":
            reducer = self._nccl = self._nccl or Nccl(self, message.whole.device)
        check_sum(reducer, self._small, message.whole, self)
        return reducer

    @verb
    def _choose_reducer(self, message: FlatMessage) -> Reducer:
        return choose(self.comm, self.reduction, self.count_limit, message.host)

    @verb
    def sum_(self, message: Message, vector: bool = True) -> None:
        """Replace the message by its sum over the ranks; ``vector=False`` sends scalars and flags alone."""
        flat = checked(message)
        cells = flat.fetch(vector)
        if self.size > 1:
            (flat.reduce if vector else self._small)(cells)
            self.bytes += cells.nbytes
        flat.settle(vector)
        self.large, self.small = self.large + vector, self.small + (not vector)

    @verb
    def start_sum(self, message: Message, start: int, stop: int) -> None:
        """Begin to sum entries start..stop-1 of the vector, which are not to be touched before ``finish_sum``; on a CPU."""
        flat = checked_part(message, start, stop)
        if self.size > 1:
            self._started.start(flat.host[start:stop])
            self.bytes += flat.host[start:stop].nbytes

    @verb
    def finish_sum(self, message: Message) -> None:
        """Sum scalars and flags too and wait for all that was started; counts as one message."""
        flat = checked(message)
        cells = flat.fetch(vector=False)
        if self.size > 1:
            self._small(cells)
            self._started.finish()
            self.bytes += cells.nbytes
        flat.settle(vector=False)
        self.large += 1

    @verb
    def broadcast_(self, vector: Tensor, root: int = 0) -> None:
        """Overwrite ``vector`` (1-D, contiguous) by that of rank ``root``."""
        from apts_mpi.parallel.message import check_flat

        check_flat(vector)
        staged = vector.detach().cpu()  # waits for the device; a CPU tensor is not copied
        cells = staged.numpy()
        for start in range(0, len(cells), self.count_limit):
            self.comm.Bcast(cells[start : start + self.count_limit], root=root)
        if vector.device.type != "cpu":
            vector.detach().copy_(staged)

    @verb
    def share(self, text: str, root: int = 0) -> str:
        """The text of rank ``root``, on every rank."""
        data = np.frombuffer(text.encode(), np.uint8)
        length = np.array([len(data)])
        self.comm.Bcast(length, root=root)
        data = data.copy() if self.rank == root else np.empty(length[0], np.uint8)
        self.comm.Bcast(data, root=root)
        return data.tobytes().decode()

    def agree(self, what: str, text: str) -> None:
        """Raise HandshakeError on every rank, naming the ranks in the minority, unless ``text`` is the same on all."""
        found = difference(self, what, text)
        if found:
            raise HandshakeError(found)

    def gather(self, values: Sequence[float]) -> list[list[float]]:
        """Each rank's float64 row, on every rank, in rank order; rows may differ in length."""
        rows = self._gather(np.array(values, np.float64).reshape(-1))
        return [[float(value) for value in row.view(np.float64)] for row in rows]

    def gather_text(self, text: str) -> list[str]:
        """Each rank's text, on every rank, in rank order."""
        return [row.tobytes().decode() for row in self._gather(np.frombuffer(text.encode(), np.uint8))]

    @verb
    def collect(self, row: NDArray[Real]) -> list[NDArray[Real]] | None:
        """Each rank's row, of one dtype on all, on rank 0 in rank order; None on the others. Rows may differ in length."""
        lengths, row = np.empty(self.size, np.int64), np.ascontiguousarray(row)
        self.comm.Allgather(np.array([len(row)]), lengths)
        found = [np.empty(int(length), row.dtype) for length in lengths] if not self.rank else None
        piece = max(1, self.count_limit // self.size)
        for start in range(0, int(lengths.max()), piece):
            counts = (lengths - start).clip(0, piece)
            mine = row[start : start + piece]
            if found is None:
                self.comm.Gatherv(mine, None, root=0)
                continue
            into = np.empty(int(counts.sum()), row.dtype)
            self.comm.Gatherv(mine, [into, counts.tolist()], root=0)
            for whole, part in zip(found, np.split(into, np.cumsum(counts)[:-1]), strict=True):
                whole[start : start + len(part)] = part
        return found

    @verb
    def barrier(self) -> None:
        """Wait for all."""
        self.comm.Barrier()

    @verb
    def _gather(self, row: np.ndarray[tuple[int], np.dtype[np.float64 | np.uint8]]) -> list[np.ndarray[tuple[int], np.dtype[np.uint8]]]:
        """Every rank's bytes."""
        data = row.view(np.uint8)
        lengths = np.empty(self.size, np.int64)
        self.comm.Allgather(np.array([len(data)]), lengths)
        found = np.empty(int(lengths.sum()), np.uint8)
        self.comm.Allgatherv(data, [found, lengths.tolist()])
        return np.split(found, np.cumsum(lengths)[:-1])
