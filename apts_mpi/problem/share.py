"""The current samples of one subdomain, normalised once if there is room."""

from __future__ import annotations

from torch import Tensor

from apts_mpi.problem.samples import Samples


class Share:
    """The current samples of one subdomain: first the owned, then the borrowed."""

    def __init__(self, samples: Samples, ready_bytes: int) -> None:
        self.samples, self._ready_bytes = samples, ready_bytes
        self.rows: Tensor | None = None
        self._ready: tuple[Tensor, Tensor] | None = None
        self._room: tuple[Tensor, Tensor] | None = None  # where they lie, as long as there is enough of it

    def select(self, rows: Tensor) -> None:
        """Use these rows from now on; normalise them at once if they are small enough."""
        self.rows, self._ready = rows, None
        floats = len(rows) * self.samples.inputs[:1].numel()
        if floats * self.samples.dtype.itemsize <= self._ready_bytes:
            self._ready = self._stored(self.samples.take(rows))

    def place(self) -> tuple[int, ...] | None:
        """Where the normalised samples lie, and how many there are; None if they are normalised anew each time."""
        return None if self._ready is None else (self._ready[0].data_ptr(), self._ready[1].data_ptr(), len(self._ready[0]))

    def take(self, piece: range) -> tuple[Tensor, Tensor]:
        """Normalised inputs and targets of some of the current samples."""
        if self._ready is not None:
            return self._ready[0][piece.start : piece.stop], self._ready[1][piece.start : piece.stop]
        assert self.rows is not None
        return self.samples.take(self.rows[piece.start : piece.stop])

    def _stored(self, now: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """``now``, moved to where the samples before it lay if that is room enough: so recorded work finds it."""
        count = len(now[0])
        if self._room is None or len(self._room[0]) < count:
            self._room = now
        else:
            for room, values in zip(self._room, now, strict=True):
                room[:count].copy_(values)
        return self._room[0][:count], self._room[1][:count]
