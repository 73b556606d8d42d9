"""Dot products of long float32 vectors, accurate enough to compare nearly equal losses."""

from __future__ import annotations

import math

import torch
from torch import Tensor

BLOCK = 65536  # partial sums of a block in the vectors' dtype, of the blocks in float64


def dot64(a: Tensor, b: Tensor) -> Tensor:
    """a'b as a float64 scalar on the device; a, b of shape (n,)."""
    parts = [torch.dot(x, y) for x, y in zip(a.split(BLOCK), b.split(BLOCK), strict=True)]  # type: ignore[no-untyped-call]
    return torch.stack(parts).double().sum()


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
