"""What a local or global trust-region loop asks of its quadratic model, and the first-order model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from apts_mpi.solver.subproblem import first_order
from apts_mpi.solver.vectors import to_host

# Columns worked on at a time. Inner products: the error of a float32 product grows with the block (7e-7 at 8,192 in the
# worst case measured), its overhead shrinks. The rest: 22 rows of a block stay in the second-level cache.
PRODUCT_BLOCK = 8_192
BLOCK = 32_768
GPU_BLOCK = 1_048_576  # both, on a GPU: few launches


@dataclass(frozen=True)
class Step:
    """A proposed step; ``vector`` is (n,) and belongs to the model: read it, never write it.

    It stays as it is until the next ``propose_``.
    """

    vector: Tensor
    predicted: float  # -(g's + s'Bs/2), >= 0
    norm: float  # ||s|| <= radius
    hits_boundary: bool
    finite: bool  # False: the gradient or the model was not finite, the step is zero


@dataclass(frozen=True)
class Observed:
    """What the model saw of a trial gradient."""

    finite: bool  # g_new'g_new is finite, and all of ``also``
    taken: bool  # did the pair enter the memory
    also: Sequence[float] = ()  # the numbers that came with the same transfer


class Model(Protocol):
    """A quadratic model m(s) = g's + s'Bs/2 that learns from the trials. One iteration of the caller:

        norm = model.begin(grad)                            # once, and whenever grad changed by other hands
        step = model.propose_(grad, radius)
        value = f(theta + step.vector, out=grad_new)        # a number on the device
        seen = model.observe_(step.vector, grad, grad_new, [value])
        loss_new, = seen.also
        if judge(...).accepted:
            model.accept()                                  # grad_new is the gradient from now on
            grad, grad_new = grad_new, grad

    A rejected step is observed all the same, since its pair improves B, and ``accept`` is left out;
    the gradient then remains ``grad``. All vectors are (n,), contiguous, of the model's dtype and device.
    Two passes over the memory and one device-to-host transfer per iteration. Nothing here is collective.
    """

    def reset(self) -> None:
        """Forget all pairs and the gradient; ``begin`` must follow."""

    def begin(self, grad: Tensor) -> float:
        """Take ``grad`` as the gradient at the current point; returns its norm."""

    def propose_(self, grad: Tensor, radius: float) -> Step:
        """Minimise the model over ||s|| <= radius; ``grad`` as given to ``begin`` or accepted last."""

    def observe_(self, step: Tensor, grad: Tensor, grad_new: Tensor, also: Sequence[Tensor | float] = ()) -> Observed:
        """Offer the pair (s, y = grad_new - grad) to the memory, unless one of ``also`` is not finite, and look at ``grad_new``.

        ``also``: what the caller wants to know, numbers or 0-d tensors on the device.
        """

    def accept(self) -> None:
        """Make the ``grad_new`` observed last the current gradient."""

    def state(self) -> dict[str, Tensor]:
        """What the model remembers of earlier steps, live; the gradient is not among it."""

    def restore_(self, state: Mapping[str, Tensor]) -> None:
        """Remember what ``state`` gave, to the last bit; ``begin`` must follow."""


def block_sizes(device: torch.device) -> tuple[int, int]:
    """Columns per inner product, and per copy or combination (a multiple of the former)."""
    return (PRODUCT_BLOCK, BLOCK) if device.type == "cpu" else (GPU_BLOCK, GPU_BLOCK)


def square(x: Tensor) -> Tensor:
    """x'x as a float64 scalar on the device of x, (n,): blocks in the dtype of x, their sum in float64."""
    size = block_sizes(x.device)[0]
    parts = [x[start : start + size] for start in range(0, x.numel(), size)]
    return torch.stack([torch.dot(part, part) for part in parts]).sum(dtype=torch.float64)


class FirstOrder:
    """The model without curvature: s = -radius g / ||g||, always on the boundary."""

    def __init__(self, n_params: int, dtype: torch.dtype, device: torch.device) -> None:
        self._step = torch.zeros(n_params, dtype=dtype, device=device)
        self.reset()

    def reset(self) -> None:
        """Forget the gradient."""
        self._norm = self._norm_new = math.nan

    def begin(self, grad: Tensor) -> float:
        """Take ``grad`` as the gradient at the current point; returns its norm."""
        self._norm = math.sqrt(float(square(grad)))
        return self._norm

    def propose_(self, grad: Tensor, radius: float) -> Step:
        """s = -radius g / ||g||, (n,); zero if the gradient is zero or not finite."""
        factor, predicted = first_order(self._norm, radius)
        if factor == 0:
            self._step.zero_()
        else:
            torch.mul(grad, factor, out=self._step)
        moves = factor != 0
        return Step(self._step, predicted, radius if moves else 0.0, moves, math.isfinite(self._norm))

    def observe_(self, step: Tensor, grad: Tensor, grad_new: Tensor, also: Sequence[Tensor | float] = ()) -> Observed:
        """Look at ``grad_new``; there is no memory."""
        found, *numbers = to_host([square(grad_new), *also])
        self._norm_new = math.sqrt(found)
        return Observed(all(map(math.isfinite, (found, *numbers))), taken=False, also=numbers)

    def accept(self) -> None:
        """Make the ``grad_new`` observed last the current gradient."""
        self._norm = self._norm_new

    def state(self) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    def restore_(self, state: Mapping[str, Tensor]) -> None:
        """Nothing to remember."""
        self.reset()
