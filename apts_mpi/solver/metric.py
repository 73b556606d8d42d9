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

Array = NDArray[np.float64]


BELOW = 0.9  # gamma over the least curvature of a pair: at 1 that pair, s'(y - gamma s) = 0, tells L-SR1 nothing but rounding
FLOOR = 1e-3  # of F: a pair that happens to show next to no curvature does not freeze all other directions


class Metric:
    """P = min(1, gamma |B|^-1)^(1/2), B = gamma I + Psi M Psi' the L-SR1 matrix of the last ``memory`` pairs.

    A pair is a summed step s~ and the change of grad f(.; D) along it. gamma = 0.9 min s'y / s's over the pairs with s'y > 0,
    below the least curvature seen that is more than rounding, so that with B = Q Lambda Q' on the span of Psi

        P = I - Q (I - F) Q',   F = min(1, gamma / |Lambda|)^(1/2), 1e-3 at least:

    where the loss is more curved, whatever the sign, and momentum steps swing, they are damped; nothing is amplified. Without such
    a pair P = I. Vectors are (n,), contiguous, of the dtype and on the device of ``like``; 2 ``memory`` of them keep pairs, alike
    on all ranks, ``memory`` of them Q. Nothing here is collective. ``cut``: as ``compact.spectrum`` has it.
    """

    def __init__(self, memory: int, like: Tensor, cut: float = CUT) -> None:
        self._rows = like.new_zeros(2 * memory, like.numel())  # slot j: s in row 2j, y in row 2j + 1
        self._basis = like.new_zeros(memory, like.numel())
        self._gram = np.zeros((2 * memory, 2 * memory))
        self._slots: list[int] = []  # oldest pair first
        self._damping = like.new_zeros(0)  # F - 1
        self._block = min(like.numel(), block_sizes(like.device)[0])
        self._noise = product_noise(like.dtype)
        self.cut = cut

    def observe(self, step: Tensor, grad: Tensor, grad_new: Tensor) -> None:
        """Put the pair (s, y = grad_new - grad) in the place of the oldest; it does not count if a product is not finite. One transfer."""
        memory = len(self._basis)
        slot = next((slot for slot in range(memory) if slot not in self._slots), self._slots[0] if self._slots else 0)
        pair = self._rows[2 * slot : 2 * slot + 2]
        pair[0].copy_(step)
        torch.sub(grad_new, grad, out=pair[1])
        parts = [torch.mm(pair[:, i : i + self._block], self._rows[:, i : i + self._block].T) for i in range(0, step.numel(), self._block)]
        products = torch.stack(parts).sum(0, dtype=torch.float64).cpu().numpy()
        self._slots = [other for other in self._slots if other != slot]
        if np.isfinite(products).all():
            self._gram[2 * slot : 2 * slot + 2], self._gram[:, 2 * slot : 2 * slot + 2] = products, products.T
            self._slots.append(slot)
        else:
            pair.zero_()
        self._form()

    def apply_(self, vector: Tensor, out: Tensor) -> Tensor:
        """P ``vector``, in ``out`` or, where P = I, itself; two passes over Q, no transfer."""
        rank = len(self._damping)
        if rank == 0:
            return vector
        basis = self._basis[:rank]
        return torch.addmv(vector, basis.T, torch.mv(basis, vector).mul_(self._damping), out=out)

    def state(self) -> dict[str, Tensor]:
        """Slots, inner products and, oldest first, the pairs: ``pair0`` is (2, n), s and y, live."""
        pairs = {f"pair{i}": self._rows[2 * slot : 2 * slot + 2] for i, slot in enumerate(self._slots)}
        return {"slots": torch.tensor(self._slots, dtype=torch.float64), "gram": torch.from_numpy(self._gram), **pairs}

    def restore_(self, state: Mapping[str, Tensor]) -> None:
        """Put every pair back into its slot, or begin without any if the state is of another memory or there is none.

        ValueError if the slots are not those of such a memory.
        """
        if "gram" not in state or state["gram"].shape != self._gram.shape:
            self._slots = []
            self._form()
            return
        slots = [int(slot) for slot in state["slots"]]
        if len(set(slots)) != len(slots) or not {*slots} <= {*range(len(self._basis))}:
            raise ValueError(f"the slots of a memory of {len(self._basis)} pairs cannot be {slots}")
        self._slots = slots
        self._gram[:] = state["gram"].numpy()
        self._rows.zero_()
        for i, slot in enumerate(slots):
            self._rows[2 * slot : 2 * slot + 2].copy_(state[f"pair{i}"])
        self._form()

    def _form(self) -> None:
        """Q and F of the present pairs."""
        self._damping = self._damping.new_zeros(0)
        s = 2 * np.array(self._slots, dtype=np.intp)
        gram = Gram(self._gram[np.ix_(s, s)], self._gram[np.ix_(s, s + 1)], self._gram[np.ix_(s + 1, s + 1)])
        gamma = BELOW * least_curvature(gram, self._noise)
        if not gamma:
            return
        found = spectrum(gram, sr1(gram, gamma, self._noise), self._noise, self.cut, self._rows.shape[1])
        rank = len(found.eigenvalues)
        weights = np.zeros((rank, len(self._rows)))  # Q' = basis' (Y - gamma S)'
        weights[:, s], weights[:, s + 1] = -gamma * found.basis.T, found.basis.T
        torch.mm(self._like(weights), self._rows, out=self._basis[:rank])
        share = np.divide(gamma, np.abs(found.eigenvalues), out=np.ones(rank), where=np.abs(found.eigenvalues) > gamma)
        self._damping = self._like(np.maximum(np.sqrt(share), FLOOR) - 1)

    def _like(self, values: Array) -> Tensor:
        return torch.from_numpy(values).to(self._rows.dtype).to(self._rows.device)


def least_curvature(gram: Gram, noise: float) -> float:
    """min s'y / s's over the pairs with s'y > ``noise`` ||s|| ||y||; 0 if there is none, or if it is not a number."""
    squares, curvatures = np.diag(gram.ss), np.diag(gram.sy)
    known = (curvatures > noise * np.sqrt(squares * np.diag(gram.yy))) & (squares > 0)
    least = float(np.min(curvatures[known] / squares[known])) if known.any() else 0.0
    return least if math.isfinite(least) else 0.0
