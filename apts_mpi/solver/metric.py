"""The metric of the sweep: the inverse root of an L-SR1 matrix, from gradients that a full batch has anyway."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from apts_mpi.solver.compact import Gram, product_noise, spectrum, sr1
from apts_mpi.solver.lsr1 import CUT
from apts_mpi.solver.model import block_sizes
from apts_mpi.solver.pairs import Pairs
from apts_mpi.solver.vectors import to_device

Array = NDArray[np.float64]

BELOW = 0.9  # gamma over the least curvature of a pair: at 1 that pair, s'(y - gamma s) = 0, tells L-SR1 nothing but rounding
FLOOR = 1e-3  # of F: a pair that happens to show next to no curvature does not freeze all other directions


class Metric:
    """P = min(1, gamma |B|^-1)^(1/2), B = gamma I + Psi M Psi' the L-SR1 matrix of the last ``memory`` pairs.

    A pair is a summed step s~ and the change of grad f(.; D) along it. gamma = 0.9 min s'y / s's over the pairs with s'y > 0,
    below the least curvature seen that is more than rounding, so that with B = Q Lambda Q' on the span of Psi

        P = I - Q (I - F) Q',   F = min(1, gamma / |Lambda|)^(1/2), 1e-3 at least:

    where the loss is more curved, whatever the sign, and momentum steps swing, they are damped; nothing is amplified. Without such
    a pair P = I. Vectors are (n,), contiguous, of the dtype and on the device of ``like``; 2 (``memory`` + 1) of them keep pairs, alike
    on all ranks, ``memory`` of them Q, one the result. Nothing here is collective. ``cut``: as ``compact.spectrum`` has it.
    """

    def __init__(self, memory: int, like: Tensor, cut: float = CUT) -> None:
        self.pairs = Pairs(memory, like)
        self._basis = like.new_zeros(memory, like.numel())
        self._out = torch.zeros_like(like)
        self._damping = like.new_zeros(memory)  # F - 1
        self.rank = 0  # of Q; 0: P = I
        self._block = min(like.numel(), block_sizes(like.device)[0])
        self._noise = product_noise(like.dtype)
        self.cut = cut

    @property
    def rows(self) -> int:
        """Of Q that ``apply`` reads. On a GPU all, those beyond the rank undamped, so that what was recorded serves for any rank but 0."""
        return len(self._basis) if self._basis.is_cuda and self.rank else self.rank

    def observe(self, step: Tensor, grad: Tensor, grad_new: Tensor) -> None:
        """Take the pair (s, y = grad_new - grad), unless one of its products is not finite; one transfer."""
        rows, spare = self.pairs.rows, self.pairs.spare_rows
        pair = rows[spare[0] : spare[1] + 1]
        pair[0].copy_(step)
        torch.sub(grad_new, grad, out=pair[1])
        parts = [torch.mm(pair[:, i : i + self._block], rows[:, i : i + self._block].T) for i in range(0, step.numel(), self._block)]
        products = torch.stack(parts).sum(0, dtype=torch.float64).cpu().numpy()
        if np.isfinite(products).all():
            self.pairs.products[spare], self.pairs.products[:, spare] = products, products.T
            self.pairs.take()
            self._form()
        else:
            pair.zero_()

    def apply(self, vector: Tensor) -> Tensor:
        """P ``vector``, which belongs to the metric until the next call, or where P = I itself; two passes over Q, no transfer."""
        if self.rank == 0:
            return vector
        basis = self._basis[: self.rows]
        return torch.addmv(vector, basis.T, torch.mv(basis, vector).mul_(self._damping[: self.rows]), out=self._out)

    def state(self) -> dict[str, Tensor]:
        """The pairs, live."""
        return self.pairs.state()

    def restore_(self, state: Mapping[str, Tensor]) -> None:
        """Go on with the pairs of ``state``, or begin without any if it is of another memory or there is none.

        ValueError if the slots are not those of such a memory.
        """
        self.pairs.clear()
        if "gram" in state and state["gram"].shape == self.pairs.products.shape:
            self.pairs.restore_(state)
        self._form()

    def _form(self) -> None:
        """Q and F of the present pairs."""
        self.rank = 0
        gram, s, rows = self.pairs.gram(), self.pairs.s_rows(self.pairs.order), self.pairs.rows
        gamma = BELOW * least_curvature(gram, self._noise)
        if not gamma:
            return
        found = spectrum(gram, sr1(gram, gamma, self._noise), self._noise, self.cut, rows.shape[1])
        rank = len(found.eigenvalues)
        weights = np.zeros((rank, len(rows)))  # Q' = basis' (Y - gamma S)'
        weights[:, s], weights[:, s + 1] = -gamma * found.basis.T, found.basis.T
        torch.mm(to_device(weights, rows), rows, out=self._basis[:rank])
        share = np.divide(gamma, np.abs(found.eigenvalues), out=np.ones(rank), where=np.abs(found.eigenvalues) > gamma)
        self._damping[rank:] = 0
        self._damping[:rank].copy_(to_device(np.maximum(np.sqrt(share), FLOOR) - 1, rows))
        self.rank = rank


def least_curvature(gram: Gram, noise: float) -> float:
    """min s'y / s's over the pairs with s'y > ``noise`` ||s|| ||y||; 0 if there is none, or if it is not a number."""
    squares, curvatures = np.diag(gram.ss), np.diag(gram.sy)
    known = (curvatures > noise * np.sqrt(squares * np.diag(gram.yy))) & (squares > 0)
    least = float(np.min(curvatures[known] / squares[known])) if known.any() else 0.0
    return least if math.isfinite(least) else 0.0
