"""The kernels of a GPU: same names and arguments as the torch twins, started on the current stream; nothing waits."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from apts_mpi.native.extension import compiled_module


@cache
def refused(index: int) -> str:
    """Why the GPU ``index`` starts no kernel, or empty: the driver may be older than the run time, or no code may be there for it."""
    try:
        square(torch.ones(1, device=f"cuda:{index}"))
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        return (str(error).splitlines() or [type(error).__name__])[0]
    return ""


def observe_(memory: Tensor, used: int, spare: int, grad: Tensor, grad_new: Tensor) -> Tensor:
    """See ``kernels.observe_``."""
    width = 3 * used + 10
    sums = _room(grad, width)
    compiled_module().observe_cuda_(memory, used, spare, grad, grad_new, sums, _stream(grad))
    return sums[:width]


def combine_(memory: Tensor, chosen: Sequence[int], weights: Sequence[float], factor: float, grad: Tensor, out: Tensor) -> Tensor:
    """See ``kernels.combine_``."""
    sums, most, onto = _room(grad, 1), compiled_module().DEVICE_ROWS, grad
    for first in range(0, max(1, len(chosen)), most):
        rows, by = list(chosen[first : first + most]), list(weights[first : first + most])
        compiled_module().combine_cuda_(memory, rows, by, factor, onto, out, sums, _stream(grad))
        factor, onto = 1.0, out
    return sums[0]


def reach_(step: Tensor, moved: Tensor, origin: Tensor, correction: Tensor, reached: Tensor, trial: Tensor) -> Tensor:
    """See ``kernels.reach_``."""
    sums = _room(step, 2)
    compiled_module().reach_cuda_(step, moved, origin, correction, reached, trial, sums, _stream(step))
    return sums[:2]


def blend_(momentum: Tensor, fresh: Tensor, kept: Tensor, grad: Tensor, beta: float) -> Tensor:
    """See ``kernels.blend_``."""
    squares = _squares(momentum)
    compiled_module().blend_cuda_(momentum, fresh, kept, grad, beta, squares, _stream(momentum))
    return squares


def square(vector: Tensor) -> Tensor:
    """See ``kernels.square``."""
    squares = _squares(vector)
    compiled_module().square_cuda_(vector, squares, _stream(vector))
    return squares


def advance_(point: Tensor, direction: Tensor, stride: Tensor, squares: Tensor) -> None:
    """See ``kernels.advance_``."""
    compiled_module().advance_cuda_(point, direction, stride.view(1), squares, _stream(point))


def _squares(like: Tensor) -> Tensor:
    return torch.empty(compiled_module().device_parts(like.numel()), dtype=torch.float64, device=like.device)


def _room(like: Tensor, width: int) -> Tensor:
    return torch.empty(compiled_module().device_room(like.numel(), width), dtype=torch.float64, device=like.device)


def _stream(like: Tensor) -> int:
    return int(torch.cuda.current_stream(like.device).cuda_stream)
