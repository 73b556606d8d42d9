"""The kernels of a GPU: same names and arguments as the torch twins, started on the current stream; they wait where they return floats.

``blend_`` is the twin: a sweep there is a recording, which may not wait.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from apts_mpi.native import twins
from apts_mpi.native.extension import compiled_module
from apts_mpi.native.twins import blend_

__all__ = ["blend_", "combine_", "correct_", "observe_"]


def observe_(memory: Tensor, used: int, spare: int, grad: Tensor, grad_new: Tensor) -> list[float]:
    """See ``kernels.observe_``."""
    width = 3 * used + 10
    sums = _room(grad, width)
    compiled_module().observe_cuda_(memory, used, spare, grad, grad_new, sums, _stream(grad))
    found: list[float] = sums[:width].tolist()
    return found


def combine_(memory: Tensor, chosen: Sequence[int], weights: Sequence[float], factor: float, grad: Tensor, out: Tensor) -> float | Tensor:
    """See ``kernels.combine_``."""
    if len(chosen) > compiled_module().DEVICE_ROWS:
        return twins.combine_(memory, chosen, weights, factor, grad, out)
    sums = _room(grad, 1)
    compiled_module().combine_cuda_(memory, list(chosen), list(weights), factor, grad, out, sums, _stream(grad))
    return sums[0]


def correct_(grad: Tensor, correction: Tensor, theta: Tensor, origin: Tensor) -> float:
    """See ``kernels.correct_``."""
    sums = _room(grad, 1)
    compiled_module().correct_cuda_(grad, correction, theta, origin, sums, _stream(grad))
    return float(sums[0])


def _room(like: Tensor, width: int) -> Tensor:
    tiles = -(-like.numel() // compiled_module().DEVICE_TILE)
    return torch.empty((tiles + 1) * width, dtype=torch.float64, device=like.device)


def _stream(like: Tensor) -> int:
    return int(torch.cuda.current_stream(like.device).cuda_stream)
