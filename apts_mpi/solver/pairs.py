"""The pairs (s, y) that an L-SR1 matrix is made of, and their inner products."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from apts_mpi.solver.compact import Gram


class Pairs:
    """Up to ``memory`` pairs, s_j and y_j of slot j in rows 2j and 2j + 1 of one (2 (memory + 1), n) buffer like ``like`` (n,).

    One slot is ``spare``: pairs are tried in it, so that taking one copies nothing and refusing one loses nothing. ``products``
    are the inner products of all rows, float64 on the host, kept up by whoever fills a slot.
    """

    def __init__(self, memory: int, like: Tensor) -> None:
        self.memory = memory
        self.rows = _zeros(2 * (memory + 1), like)
        self.products = np.zeros((len(self.rows), len(self.rows)))
        self.clear()

    def clear(self) -> None:
        """Forget all pairs."""
        self.order: list[int] = []  # slots, oldest pair first
        self.spare = 0

    @property
    def spare_rows(self) -> NDArray[np.intp]:
        """Of s and y in the spare slot."""
        return np.array([2 * self.spare, 2 * self.spare + 1], dtype=np.intp)

    def take(self) -> None:
        """What is in the spare slot becomes the newest pair; the oldest leaves a full memory and its slot is the next spare one."""
        if self.memory > 0:
            self.order.append(self.spare)
            self.spare = self.order.pop(0) if len(self.order) > self.memory else len(self.order)

    def gram(self, slots: Sequence[int] | None = None) -> Gram:
        """S'S, S'Y and Y'Y of the pairs in ``slots``, or of all in their order."""
        s = self.s_rows(self.order if slots is None else slots)
        y, down = s + 1, s[:, None]
        return Gram(self.products[down, s], self.products[down, y], self.products[down + 1, y])

    @staticmethod
    def s_rows(slots: Sequence[int]) -> NDArray[np.intp]:
        """The rows of s in some slots; those of y follow them."""
        return 2 * np.array(slots, dtype=np.intp)

    def state(self) -> dict[str, Tensor]:
        """Slots, inner products and, oldest first, the pairs: ``pair0`` is (2, n), s and y, live."""
        slots = torch.tensor([*self.order, self.spare], dtype=torch.float64)
        pairs = {f"pair{i}": self.rows[2 * slot : 2 * slot + 2] for i, slot in enumerate(self.order)}
        return {"slots": slots, "gram": torch.from_numpy(self.products), **pairs}

    def restore_(self, state: Mapping[str, Tensor]) -> None:
        """Put every pair back into its slot. ValueError if the slots are not those of such a memory."""
        slots = [int(slot) for slot in state["slots"]]
        if len(set(slots)) != len(slots) or not {*slots} <= {*range(self.memory + 1)} or not slots:
            raise ValueError(f"the slots of a memory of {self.memory} pairs cannot be {slots}")
        *self.order, self.spare = slots
        self.products[:] = state["gram"].numpy()
        for i, slot in enumerate(self.order):
            self.rows[2 * slot : 2 * slot + 2].copy_(state[f"pair{i}"])


def _zeros(count: int, like: Tensor) -> Tensor:
    """(count, n) zeros; on a CPU in memory of numpy, which unlike torch asks Linux for huge pages, a gain for passes over many rows."""
    if like.device.type != "cpu":
        return like.new_zeros(count, like.numel())
    return torch.from_numpy(np.zeros((count, like.numel()), like.new_empty(0).numpy().dtype))
