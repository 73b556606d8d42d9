"""The kernels of a GPU: same names and arguments as the torch twins, started on the current stream; they wait where they return floats."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from apts_mpi.native import twins
from apts_mpi.native.extension import extension


def observe_(memory: Tensor, used: int, spare: int, grad: Tensor, grad_new: Tensor) -> list[float]:
    """See ``kernels.observe_``."""
    width = 3 * used + 10
    sums = _room(grad, width)
    extension().observe_cuda_(memory, used, spare, grad, grad_new, sums, _stream(grad))  # type: ignore[union-attr]
    found: list[float] = sums[:width].tolist()
    return found


def combine_(memory: Tensor, chosen: Sequence[int], weights: Sequence[float], factor: float, grad: Tensor, out: Tensor) -> Tensor:
    """See ``kernels.combine_``."""
    if len(chosen) > extension().DEVICE_ROWS:  # type: ignore[union-attr]
        return torch.tensor(twins.combine_(memory, chosen, weights, factor, grad, out), dtype=torch.float64)
    sums = _room(grad, 1)
    extension().combine_cuda_(memory, list(chosen), list(weights), factor, grad, out, sums, _stream(grad))  # type: ignore[union-attr]
    return sums[0]


def correct_(grad: Tensor, correction: Tensor, theta: Tensor, origin: Tensor) -> float:
    """See ``kernels.correct_``."""
    sums = _room(grad, 1)
    extension().correct_cuda_(grad, correction, theta, origin, sums, _stream(grad))  # type: ignore[union-attr]
    return float(sums[0])


def _room(like: Tensor, width: int) -> Tensor:
    tiles = -(-like.numel() // extension().DEVICE_TILE)  # type: ignore[union-attr]
    return torch.empty((tiles + 1) * width, dtype=torch.float64, device=like.device)


def _stream(like: Tensor) -> int:
    return int(torch.cuda.current_stream(like.device).cuda_stream)
