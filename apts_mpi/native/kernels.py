"""The facade: a compiled kernel for float32 and float64 in host memory, or on an NVIDIA GPU, if there is one, else its torch twin.

All tensors contiguous, of one dtype and device, (n,) or, the memory, (rows, n). ValueError for a shape that does not fit, TypeError
for a dtype, device or layout. Sums of the compiled kernels are float64 in an order that does not depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from apts_mpi.native import device, host, twins
from apts_mpi.native.extension import extension


def observe_(memory: Tensor, used: int, spare: int, grad: Tensor, grad_new: Tensor) -> list[float] | Tensor:
    """y = grad_new - grad into row ``spare`` + 1 beside s in row ``spare``, and all products that an L-SR1 update asks for.

    First, for each row below ``used``, those with s, y and grad_new; then the upper triangle of (s, y, grad_new, grad) among each
    other, by rows: 3 ``used`` + 10 numbers, on a GPU as a float64 tensor there. One pass.
    """
    serves = _serves(memory, grad, grad_new)
    _fits(memory, grad, grad_new)
    if not (0 <= used <= len(memory) and 0 <= spare < len(memory) - 1):
        raise ValueError(f"rows {used} and {spare} do not fit a memory of {len(memory)} rows")
    found: list[float] | Tensor = serves.observe_(memory, used, spare, grad, grad_new)
    return found


def combine_(memory: Tensor, chosen: Sequence[int], weights: Sequence[float], factor: float, grad: Tensor, out: Tensor) -> float | Tensor:
    """out = ``factor`` grad + sum_i weights[i] memory[chosen[i]]; returns out'out, on a GPU as a 0-d tensor there.

    One pass, on a GPU for each 128 rows.
    """
    serves = _serves(memory, grad, out)
    _fits(memory, grad, out)
    if len(chosen) != len(weights) or (chosen and not (min(chosen) >= 0 and max(chosen) < len(memory))):
        raise ValueError(f"rows {list(chosen)} with {len(weights)} weights do not fit a memory of {len(memory)} rows")
    found: float | Tensor = serves.combine_(memory, chosen, weights, factor, grad, out)
    return found


def reach_(step: Tensor, moved: Tensor, origin: Tensor, correction: Tensor, reached: Tensor, trial: Tensor) -> list[float] | Tensor:
    """reached = moved + step, trial = origin + reached; returns reached'reached and correction'reached. One pass; nothing waits.

    With r_i of (4) as ``correction``, the second is what it adds to the value at the trial point. Two numbers, or a float64 tensor of
    two on the device.
    """
    vectors = (step, moved, origin, correction, reached, trial)
    serves = _serves(*vectors)
    if any(vector.shape != step.shape for vector in vectors) or step.dim() != 1:
        raise ValueError("need six vectors of one length")
    found: list[float] | Tensor = serves.reach_(*vectors)
    return found


def blend_(momentum: Tensor, fresh: Tensor, kept: Tensor, grad: Tensor, beta: float) -> float | Tensor:
    """momentum = beta momentum + (1 - beta) (fresh - kept + grad); returns momentum'momentum, on a GPU as ``square`` does. One pass."""
    serves = _serves(momentum, fresh, kept, grad)
    if not momentum.shape == fresh.shape == kept.shape == grad.shape or grad.dim() != 1:
        raise ValueError("need four vectors of one length")
    found: float | Tensor = serves.blend_(momentum, fresh, kept, grad, beta)
    return found


def square(vector: Tensor) -> Tensor:
    """Numbers on the device whose sum is vector'vector, float64. One pass."""
    found: Tensor = _serves(vector).square(vector)
    return found


def advance_(point: Tensor, direction: Tensor, stride: Tensor, squares: Tensor) -> None:
    """point -= stride direction / ||direction||, ``squares`` as of ``square``, ``stride`` 0-d on the device. One pass; nothing waits."""
    serves = _serves(point, direction, stride)
    if point.shape != direction.shape or point.dim() != 1 or stride.numel() != 1:
        raise ValueError("need two vectors of one length and one number")
    serves.advance_(point, direction, stride, squares)


def compiled(like: Tensor) -> bool:
    """Do the compiled kernels serve tensors such as ``like``?"""
    module = extension()
    if module is None or like.dtype not in (torch.float32, torch.float64) or like.numel() == 0:
        return False
    return like.device.type == "cpu" or (_made_for(like.device) and not refused(like.device))


def _made_for(where: torch.device) -> bool:
    """Is it a GPU of the kind that kernels were compiled for?"""
    return where.type == "cuda" and bool(getattr(extension(), "cuda", False)) and torch.version.hip is None


def refused(where: torch.device) -> str:
    """Why a GPU does not run the kernels that were compiled for one, so that the twins serve there; empty if it does, or none were."""
    if not _made_for(where):
        return ""
    return device.refused(torch.cuda.current_device() if where.index is None else where.index)


def _serves(*tensors: Tensor) -> ModuleType:
    """The kernels of the host or of a GPU, or the twins. TypeError unless the tensors are contiguous, of one dtype and device."""
    first = tensors[0]
    for tensor in tensors:
        if tensor.dtype != first.dtype or tensor.device != first.device or not tensor.is_contiguous():
            raise TypeError("need contiguous tensors of one dtype and on one device")
    if not compiled(first):
        return twins
    return device if first.is_cuda else host


def _fits(memory: Tensor, *vectors: Tensor) -> None:
    if memory.dim() != 2 or any(vector.shape != memory.shape[1:] for vector in vectors):
        raise ValueError(f"need a memory (rows, n) and vectors (n,), got {tuple(memory.shape)} and {[tuple(v.shape) for v in vectors]}")
