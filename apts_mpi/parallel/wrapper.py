"""A communicator around another one: every verb goes through; those who measure or delay change single verbs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor, device, dtype

    from apts_mpi.contracts import Communicator, Message, Real, Timers


class WrappedCommunicator:
    """``contracts.Communicator`` that hands every call to ``inner``."""

    def __init__(self, inner: Communicator) -> None:
        self.inner = inner
        self.rank, self.size, self.host = inner.rank, inner.size, inner.host
        self.local_rank, self.library = inner.local_rank, inner.library

    @property
    def bytes(self) -> int:
        """Payload bytes reduced so far, this rank."""
        return self.inner.bytes

    @property
    def messages(self) -> int:
        """Large and small reductions so far, this rank."""
        return self.inner.messages

    def configure(self, reduction: str, count_limit: int, transport: str = "host") -> None:
        """How messages planned from now on are summed."""
        self.inner.configure(reduction, count_limit, transport)

    def plan(self, n_params: int, dtype: dtype, device: device, scalars: Sequence[str]) -> Message:
        """Allocate a message once, before the loop."""
        return self.inner.plan(n_params, dtype, device, scalars)

    def sum_(self, message: Message, vector: bool = True) -> None:
        """Replace the message by its sum over the ranks."""
        self.inner.sum_(message, vector)

    def start_sum(self, message: Message, start: int, stop: int) -> None:
        """Begin to sum a part of the vector."""
        self.inner.start_sum(message, start, stop)

    def finish_sum(self, message: Message) -> None:
        """Sum scalars and flags too and wait for all that was started."""
        self.inner.finish_sum(message)

    def broadcast_(self, vector: Tensor, root: int = 0) -> None:
        """Overwrite ``vector`` by that of rank ``root``."""
        self.inner.broadcast_(vector, root)

    def share(self, text: str, root: int = 0) -> str:
        """The text of rank ``root``, on every rank."""
        return self.inner.share(text, root)

    def agree(self, what: str, text: str) -> None:
        """Raise on every rank unless ``text`` is the same on all."""
        self.inner.agree(what, text)

    def gather(self, values: Sequence[float]) -> list[list[float]]:
        """Each rank's float64 row, on every rank."""
        return self.inner.gather(values)

    def gather_text(self, text: str) -> list[str]:
        """Each rank's text, on every rank."""
        return self.inner.gather_text(text)

    def collect(self, row: NDArray[Real]) -> list[NDArray[Real]] | None:
        """Each rank's row, on rank 0 alone."""
        return self.inner.collect(row)

    def barrier(self) -> None:
        """Wait for all."""
        self.inner.barrier()


class WaitingCommunicator(WrappedCommunicator):
    """Puts a barrier before each blocking sum, so that waiting for slower ranks and sending are told apart.

    The barrier is charged to the region ``wait``. Sums that overlap with computing get none: it would end the overlap.
    """

    def __init__(self, inner: Communicator, timers: Timers) -> None:
        super().__init__(inner)
        self._timers = timers

    def sum_(self, message: Message, vector: bool = True) -> None:
        """Wait for all, then sum."""
        with self._timers("wait"):
            self.inner.barrier()
        self.inner.sum_(message, vector)
