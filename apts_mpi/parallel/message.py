"""The planned message: one flat buffer that carries a vector, exact scalars and flags.

Layout, in the run's dtype: [vector (n) | one lane of 26 cells for each scalar | one cell for each Flag].

A lane is a fixed-point number. The float64 d becomes the integer v = round(d 2^120), shifted by
2^191 so that it is not negative and written as 24 digits to the base 256, one in a cell. Sums of
digits are whole numbers below 2^24 and so exact in float32, whatever the order, for up to 65,793
terms. Two more cells count the terms (to take the shifts off again) and the values that are not
finite or not below 2^71. Values of at least 2^-68 in size lose no bit.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from apts_mpi.contracts import DIGITS, LANE, Flag

if TYPE_CHECKING:
    from torch import Tensor, device, dtype

    Cells = np.ndarray[Any, np.dtype[Any]]

TERMS_MAX = (2**24 - 1) // 255  # beyond it a sum of digits is not exact in float32
HUGE_PAGE = 2**21  # bytes
_POINT = 120  # bits behind the binary point
_SHIFT = 1 << (8 * DIGITS - 1)
_LIMIT = math.ldexp(1.0, 8 * DIGITS - 1 - _POINT)


def check_flat(tensor: Tensor) -> None:
    """Raise ValueError unless ``tensor`` is 1-D, contiguous and float32 or float64: MPI would send other bytes than meant."""
    name = str(tensor.dtype).removeprefix("torch.")
    if tensor.dim() != 1 or not tensor.is_contiguous() or name not in ("float32", "float64"):
        shape, layout = (tuple(tensor.shape), "contiguous" if tensor.is_contiguous() else "not contiguous")
        raise ValueError(f"only 1-D contiguous float32 or float64 tensors cross the wire, got shape {shape}, {layout}, {name}")


def encode(values: Iterable[float]) -> Cells:
    """The lane (26,) of ``values``: their digits added up, float64."""
    digits, terms, bad = bytearray(), 0, 0
    for value in values:
        terms += 1
        if -_LIMIT < value < _LIMIT:  # false for nan
            digits += (_SHIFT + round(math.ldexp(value, _POINT))).to_bytes(DIGITS, "little")
        else:
            bad += 1
    lane = np.zeros(LANE)
    rows = np.frombuffer(digits, np.uint8)
    lane[:DIGITS] = rows if len(rows) == DIGITS else rows.reshape(-1, DIGITS).sum(axis=0)
    lane[DIGITS:] = terms, bad
    return lane


def decode(lane: Cells) -> float:
    """The float64 nearest to the sum of the values in a lane; nan if one of them was out of range.

    Raises OverflowError beyond 65,793 terms, which a lane does not add exactly.
    """
    terms = int(lane[DIGITS])
    if terms > TERMS_MAX:
        raise OverflowError(f"a scalar sums at most {TERMS_MAX} subdomains exactly, got {terms}")
    if lane[DIGITS + 1]:
        return math.nan
    planes = lane[:DIGITS].astype("<u4").view(np.uint8).reshape(DIGITS, 4)  # sums of digits are below 2^24
    total = sum(int.from_bytes(planes[:, i].tobytes(), "little") << (8 * i) for i in range(3))
    return (total - terms * _SHIFT) / (1 << _POINT)


class FlatMessage:
    """What ``plan`` returns (see ``contracts.Message``).

    ``vector`` (n,) lies at the head of ``host`` on a CPU; on a GPU it is a buffer of its own, and
    ``host`` is pinned and staged by ``fetch`` and ``settle``. Lanes and flags are filled on the host.
    Unless ``staged``, all of it lies on the device to be summed there, and ``host`` holds lanes and flags alone.
    """

    def __init__(self, n_params: int, dtype: dtype, device: device, scalars: Sequence[str], staged: bool = True) -> None:
        import torch

        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"messages are float32 or float64, got {dtype}")
        if len(set(scalars)) != len(scalars):
            raise ValueError(f"scalar names must differ, got {', '.join(scalars)}")
        tail = LANE * len(scalars) + len(Flag)
        self._cuda = device.type == "cuda"
        count = n_params * staged + tail
        if self._cuda:
            buffer = torch.zeros(count, dtype=dtype, pin_memory=True)
        else:
            buffer = torch.from_numpy(_zeros(count, str(dtype).removeprefix("torch.")))
        self.n_params, self.staged = n_params, staged
        self.reduce: Callable[[Any], None] = lambda cells: None  # set by plan: the sum over the ranks of what ``fetch`` gives
        self.host: Cells = buffer.numpy()
        self.whole = buffer if staged else torch.zeros(n_params + tail, dtype=dtype, device=device)
        self.vector: Tensor = torch.zeros(n_params, dtype=dtype, device=device) if staged and self._cuda else self.whole[:n_params]
        self._planned, self._beside = self.vector, buffer[-tail:]
        self._tail: Cells = self.host[-tail:]
        self._lanes = {name: slice(LANE * i, LANE * (i + 1)) for i, name in enumerate(scalars)}
        self._flags = LANE * len(scalars)
        self._sums: Cells = np.zeros(len(self._tail))

    def put(self, name: str, values: Iterable[float]) -> None:
        """Set scalar ``name`` to the values of this rank's subdomains, one each."""
        self._tail[self._lane(name)] = encode(values)

    def get(self, name: str) -> float:
        """The sum over all subdomains after the last ``sum_``; nan if any value was not finite or not below 2^71."""
        lane = self._sums[self._lane(name)]
        if not lane[DIGITS]:
            raise ValueError(f"no rank put the scalar {name!r} before the last sum")
        return decode(lane)

    def terms(self, name: str) -> int:
        """How many values of scalar ``name`` the last ``sum_`` added, over all ranks."""
        return int(self._sums[self._lane(name)][DIGITS])

    def raise_flag(self, flag: Flag) -> None:
        """Tell all ranks, with the next sum of this message."""
        self._tail[self._flags + flag] = 1.0

    def count(self, flag: Flag) -> int:
        """How many ranks raised ``flag`` before the last sum."""
        return int(self._sums[self._flags + flag])

    def check(self) -> None:
        """Raise ValueError if ``vector`` is no longer the planned buffer, which is what would be sent."""
        if self.vector is not self._planned:
            raise ValueError("message.vector was replaced; write into it (vector.copy_, out=) instead")

    def nbytes(self, vector: bool) -> int:
        """What a sum sends: everything, or lanes and flags alone."""
        return (self.n_params * vector + len(self._tail)) * self.host.itemsize

    def fetch(self, vector: bool) -> Cells | Tensor:
        """The buffer to reduce, up to date: everything, on the host if it is staged; or lanes and flags alone, on the host."""
        self.check()
        if not vector:
            return self._tail
        if not self.staged:
            self.whole[self.n_params :].copy_(self._beside, non_blocking=True)
            return self.whole
        if self._cuda:
            to_host_(self.whole[: self.n_params], self.vector)
        return self.host

    def settle(self, vector: bool) -> None:
        """After the reduction: keep the sums for ``get`` and ``count``, empty lanes and flags for the next one."""
        if vector and not self.staged:
            to_host_(self._beside, self.whole[self.n_params :])
        self._sums[:] = self._tail
        self._tail.fill(0.0)
        if vector and self.staged and self._cuda:
            self.vector.copy_(self.whole[: self.n_params], non_blocking=True)

    def _lane(self, name: str) -> slice:
        if name not in self._lanes:
            raise KeyError(f"the message has no scalar {name!r}; planned: {', '.join(self._lanes) or 'none'}")
        return self._lanes[name]


def _zeros(count: int, dtype: str) -> Cells:
    """Zeros; long ones in huge pages if Linux has them, since ranks of a node copy from each other page by page."""
    nbytes = count * np.dtype(dtype).itemsize
    if nbytes < HUGE_PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return np.zeros(count, dtype)
    pages = mmap.mmap(-1, nbytes + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without them
        pages.madvise(mmap.MADV_HUGEPAGE)
    room = np.frombuffer(pages, np.uint8)
    start = -room.ctypes.data % HUGE_PAGE
    return room[start : start + nbytes].view(dtype)


def to_host_(host: Tensor, vector: Tensor) -> None:
    """Copy a device vector and wait for its stream: the one place where a device meets the wire."""
    host.copy_(vector, non_blocking=True)
    wait_for(vector.device)


def wait_for(device: device) -> None:
    """Wait for the current stream of a GPU; a CPU has none."""
    import torch

    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
