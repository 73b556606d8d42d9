"""SR1 with dense matrices in float64: the slow twin of compact.py and lsr1.py, by the textbook recursion."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def update(b: Array, s: Array, y: Array, gamma: float) -> Array | None:
    """B + r r' / (s'r) with r = y - Bs; None if |s'r| < 1e-8 ||s|| ||r||, or if s'r is nothing but rounding."""
    r = y - b @ s
    product = float(s @ r)
    rounding = 1e-14 * np.linalg.norm(s) * (np.linalg.norm(y) + (np.linalg.norm(b) + abs(gamma)) * np.linalg.norm(s))
    if product == 0 or abs(product) < max(1e-8 * np.linalg.norm(s) * np.linalg.norm(r), rounding):
        return None
    return b + np.outer(r, r) / product


def recursion(steps: Array, changes: Array, gamma: float) -> tuple[Array, list[int]]:
    """B after the pairs (rows of ``steps`` and ``changes``, oldest first) from gamma I, and which pairs counted."""
    b, used = gamma * np.eye(steps.shape[1]), []
    for i, (s, y) in enumerate(zip(steps, changes, strict=True)):
        new = update(b, s, y, gamma)
        if new is not None:
            b, used = new, [*used, i]
    return b, used


def formula(steps: Array, changes: Array, gamma: float) -> Array | None:
    """B = gamma I + Psi M Psi', M^-1 = D + L + L' - gamma S'S; None if M^-1 has a condition number above 1e6."""
    sy = steps @ changes.T
    lower = np.tril(sy, -1)
    inverse = np.diag(np.diag(sy)) + lower + lower.T - gamma * steps @ steps.T
    if len(steps) and not np.linalg.cond(inverse) <= 1e6:
        return None
    psi = (changes - gamma * steps).T
    return gamma * np.eye(steps.shape[1]) + psi @ np.linalg.solve(inverse, psi.T)


class DenseLSR1:
    """The memory by the same rules: at most m admitted pairs, gamma = y'y / s'y of the newest with s'y > 0."""

    def __init__(self, n: int, memory: int, gamma: float) -> None:
        self.n, self.memory, self.gamma = n, memory, gamma
        self.pairs: list[tuple[Array, Array]] = []

    def hessian(self) -> Array:
        return recursion(*self.rows(), self.gamma)[0]

    def rows(self) -> tuple[Array, Array]:
        empty = np.zeros((0, self.n))
        return (np.array([s for s, _ in self.pairs]), np.array([y for _, y in self.pairs])) if self.pairs else (empty, empty)

    def offer(self, s: Array, y: Array) -> bool:
        if not np.isfinite(np.concatenate([s, y])).all() or update(self.hessian(), s, y, self.gamma) is None:
            return False
        if s @ y > 0:
            self.gamma = min(max(float(y @ y / (s @ y)), 1e-8), 1e8)
        self.pairs = [*self.pairs, (s, y)][-self.memory :] if self.memory else []
        return True
