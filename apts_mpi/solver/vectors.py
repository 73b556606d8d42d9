"""Dot products of long float32 vectors, accurate enough to compare nearly equal losses."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BLOCK = 65536  # partial sums of a block in the vectors' dtype, of the blocks in float64


def dot64(a: Tensor, b: Tensor) -> Tensor:
    """a'b as a float64 scalar on the device; a, b of shape (n,). On a GPU of products rounded to the vectors' dtype, by three launches."""
    if a.is_cuda:
        return (a * b).sum(dtype=torch.float64)
    parts = [torch.dot(x, y) for x, y in zip(a.split(BLOCK), b.split(BLOCK), strict=True)]  # type: ignore[no-untyped-call]
    return torch.stack(parts).double().sum()


def to_host(values: Sequence[Tensor | float]) -> list[float]:
    """Numbers, of which those on a device come in one transfer."""
    waiting = [value.double() for value in values if isinstance(value, Tensor)]
    found = iter(torch.stack(waiting).tolist() if waiting else [])
    return [next(found) if isinstance(value, Tensor) else value for value in values]


def to_device(values: NDArray[np.float64], like: Tensor) -> Tensor:
    """An array in the dtype and on the device of ``like``; nothing waits."""
    host = torch.from_numpy(values).to(like.dtype)
    return host if like.device.type == "cpu" else host.pin_memory().to(like.device, non_blocking=True)


def dot(a: Tensor, b: Tensor) -> float:
    """a'b on the host."""
    return float(dot64(a, b))


def norm(a: Tensor) -> float:
    """||a|| on the host; nan if an entry is not finite."""
    square = dot(a, a)
    return math.sqrt(square) if math.isfinite(square) else math.nan


def number(value: float) -> Tensor:
    """A number as a state holds it: a 0-d float64 tensor on the host."""
    return torch.tensor(value, dtype=torch.float64)
