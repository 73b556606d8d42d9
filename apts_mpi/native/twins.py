"""The torch twins: same names and arguments as the kernels, for any device, and what tests compare the kernels with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

BLOCK = 8_192  # columns of an inner product in the tensors' dtype; the blocks are added in float64


def observe_(memory: Tensor, used: int, spare: int, grad: Tensor, grad_new: Tensor) -> list[float]:
    """See ``kernels.observe_``."""
    torch.sub(grad_new, grad, out=memory[spare + 1])
    pack = torch.stack([memory[spare], memory[spare + 1], grad_new, grad])
    starts = range(0, memory.shape[1], BLOCK)
    wide = [torch.mm(memory[:used, i : i + BLOCK], pack[:3, i : i + BLOCK].T) for i in starts]
    small = [torch.mm(pack[:, i : i + BLOCK], pack[:, i : i + BLOCK].T) for i in starts]
    upper = torch.triu_indices(4, 4, device=memory.device)
    triangle = torch.stack(small).sum(0, dtype=torch.float64)[upper[0], upper[1]]
    found: list[float] = torch.cat([torch.stack(wide).sum(0, dtype=torch.float64).view(-1), triangle]).tolist()
    return found


def combine_(memory: Tensor, chosen: Sequence[int], weights: Sequence[float], factor: float, grad: Tensor, out: Tensor) -> float:
    """See ``kernels.combine_``."""
    torch.mul(grad, factor, out=out)
    for row, weight in zip(chosen, weights, strict=True):
        out.add_(memory[row], alpha=weight)
    return float(_dot(out, out))


def reach_(step: Tensor, moved: Tensor, origin: Tensor, correction: Tensor, reached: Tensor, trial: Tensor) -> Tensor:
    """See ``kernels.reach_``."""
    torch.add(moved, step, out=reached)
    torch.add(origin, reached, out=trial)
    return torch.stack([_dot(reached, reached), _dot(correction, reached)])


def blend_(momentum: Tensor, fresh: Tensor, kept: Tensor, grad: Tensor, beta: float) -> float:
    """See ``kernels.blend_``."""
    momentum.lerp_(fresh - kept + grad, 1 - beta)
    return float(_dot(momentum, momentum))


def square(vector: Tensor) -> Tensor:
    """See ``kernels.square``."""
    return torch.dot(vector, vector).double().view(1)


def advance_(point: Tensor, direction: Tensor, stride: Tensor, squares: Tensor) -> None:
    """See ``kernels.advance_``."""
    length = squares.sum().sqrt_().clamp_(min=torch.finfo(direction.dtype).tiny).to(direction.dtype)
    torch.addcmul(point, direction, stride / length, value=-1, out=point)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    if a.device.type != "cpu":  # few launches, for they serve where no kernel does
        return (a * b).sum(dtype=torch.float64)
    parts = [torch.dot(x, y) for x, y in zip(a.split(BLOCK), b.split(BLOCK), strict=True)]  # type: ignore[no-untyped-call]
    return torch.stack(parts).sum(dtype=torch.float64)
