"""The communicator of one rank: sums are identities and nothing is sent; needs no MPI."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor, device, dtype

    from apts_mpi.contracts import Message, Real
    from apts_mpi.parallel.message import FlatMessage


@cache
def _planned() -> type[FlatMessage]:
    """What plan() makes: imported late, since it loads numpy, and once, since a sum takes microseconds."""
    from apts_mpi.parallel.message import FlatMessage

    return FlatMessage


def checked(message: Message) -> FlatMessage:
    """``message`` if ``plan`` made it, else TypeError: only planned buffers cross the wire."""
    if not isinstance(message, _planned()):
        raise TypeError(f"sum_ takes a message made by plan(), got {type(message).__name__}")
    return message


def checked_part(message: Message, start: int, stop: int) -> FlatMessage:
    """``message`` if these entries of its vector can be summed while the rank computes, else TypeError or ValueError."""
    flat = checked(message)
    flat.check()
    if flat.vector.device.type != "cpu" or not flat.staged:
        raise ValueError(f"start_sum works on CPU tensors alone, got one on {flat.vector.device}; set baseline.overlap = false")
    if not 0 <= start < stop <= flat.n_params:
        raise ValueError(f"start_sum takes a part of the {flat.n_params} entries, got {start}..{stop}")
    return flat


class SerialCommunicator:
    """``contracts.Communicator`` at one rank; the same refusals and counts as over MPI, but zero bytes."""

    rank = 0
    size = 1
    local_rank = 0
    local_size = 1
    library = "none (one rank)"

    def __init__(self) -> None:
        self.host = platform.node()
        self.large = 0  # sums of a whole message
        self.small = 0  # sums of scalars and flags alone
        self.bytes = 0
        self.reductions: dict[str, str] = {}

    @property
    def messages(self) -> int:
        """Sums so far."""
        return self.large + self.small

    def configure(self, reduction: str, count_limit: int, transport: str = "host") -> None:
        """Nothing is sent, so nothing to configure."""

    def plan(self, n_params: int, dtype: dtype, device: device, scalars: Sequence[str]) -> FlatMessage:
        """Allocate a message once, before the loop."""
        from apts_mpi.parallel.message import FlatMessage

        return FlatMessage(n_params, dtype, device, scalars)

    def sum_(self, message: Message, vector: bool = True) -> None:
        """The sum over one rank: the vector stays, scalars and flags can be read."""
        flat = checked(message)
        flat.check()
        flat.settle(vector=False)
        self.large, self.small = self.large + vector, self.small + (not vector)

    def start_sum(self, message: Message, start: int, stop: int) -> None:
        """The entries are their own sum."""
        checked_part(message, start, stop)

    def finish_sum(self, message: Message) -> None:
        """Scalars and flags can be read."""
        self.sum_(message)

    def broadcast_(self, vector: Tensor, root: int = 0) -> None:
        """Check ``vector``; nothing to send."""
        from apts_mpi.parallel.message import check_flat

        check_flat(vector)

    def share(self, text: str, root: int = 0) -> str:
        """``text``."""
        return text

    def agree(self, what: str, text: str) -> None:
        """One rank agrees with itself."""

    def gather(self, values: Sequence[float]) -> list[list[float]]:
        """The one row."""
        return [[float(value) for value in values]]

    def gather_text(self, text: str) -> list[str]:
        """The one text."""
        return [text]

    def collect(self, row: NDArray[Real]) -> list[NDArray[Real]] | None:
        """The one row."""
        return [row]

    def barrier(self) -> None:
        """Nobody to wait for."""
