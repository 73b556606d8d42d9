"""How samples that stay on the host reach a device: two pinned buffers in turn, one filled and one copied while the device computes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

SLOTS = 2


class Staging:
    """Rows of one host tensor, gathered into a pinned buffer and copied on a stream of its own, for which the current one waits.

    The host runs ahead of the device by one piece, so that it fills one buffer while the other is copied and used. On a CPU nothing is
    pinned and copies are done at once.
    """

    def __init__(self, values: Tensor, device: torch.device) -> None:
        self._values, self._device = values, device
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            new_stream: Callable[[torch.device], torch.cuda.Stream] = torch.cuda.Stream
            self._stream = new_stream(device)
        self._slots = [values[:0]] * SLOTS
        self._begun: list[torch.cuda.Event | None] = [None] * SLOTS
        self._turn = 0

    def send(self, rows: Tensor | slice) -> Tensor:
        """These rows, numbers on the host or a slice, in a new tensor on the device."""
        turn, self._turn = self._turn, (self._turn + 1) % SLOTS
        if self._stream is not None:
            self._wait(turn)
        count = len(rows) if isinstance(rows, Tensor) else len(range(*rows.indices(len(self._values))))
        room = self._room(turn, count)
        if isinstance(rows, Tensor):
            torch.index_select(self._values, 0, rows, out=room)
        else:
            room.copy_(self._values[rows])
        if self._stream is None:
            return room.clone()
        with torch.cuda.stream(self._stream):
            sent = torch.empty(room.shape, dtype=room.dtype, device=self._device)
            sent.copy_(room, non_blocking=True)
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._stream)
        sent.record_stream(current)  # its memory is not to be used again before the current stream has done with it
        return sent

    def _wait(self, turn: int) -> None:
        """Wait until the piece before the last has been used: its buffer is free then, and no more than two are on the device."""
        before = self._begun[1 - turn]
        if before is not None:
            before.synchronize()
        new_event: Callable[[], torch.cuda.Event] = torch.cuda.Event
        event = self._begun[turn] = new_event()
        event.record(torch.cuda.current_stream(self._device))  # behind all that the pieces so far are used for

    def _room(self, turn: int, count: int) -> Tensor:
        """A buffer's first ``count`` rows; it grows to the longest piece there was."""
        if len(self._slots[turn]) < count:
            self._slots[turn] = torch.empty((count, *self._values.shape[1:]), dtype=self._values.dtype, pin_memory=self._stream is not None)
        return self._slots[turn][:count]


def fits(nbytes: int, place: str, device: torch.device, sharers: int = 1) -> bool:
    """Whether ``nbytes`` of samples go to the device: as ``place`` = device or host says; auto: if half of its free memory holds them.

    ``sharers``: so many ranks compute on the device and bring samples of their own.
    """
    if place != "auto" or device.type != "cuda":
        return place != "host"
    free, _ = torch.cuda.mem_get_info(device)
    return 2 * nbytes * sharers <= free
