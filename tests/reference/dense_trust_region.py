"""The trust-region subproblem with a dense B in float64: the slow twin of subproblem.py and obs.py, by bisection."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def value(b: Array, g: Array, s: Array) -> float:
    """g's + s'Bs/2."""
    return float(g @ s + 0.5 * s @ b @ s)


@np.errstate(all="ignore")
def solve_dense(b: Array, g: Array, radius: float) -> Array:
    """A global minimiser of g's + s'Bs/2 over ||s|| <= radius."""
    lam, v = np.linalg.eigh(b)
    c = v.T @ g
    size = np.linalg.norm(g) + radius * np.abs(lam).max()
    if size == 0:
        return np.zeros_like(g)
    if lam[0] > 0 and np.linalg.norm(c / lam) <= radius:
        return -v @ (c / lam)
    gaps = lam - lam[0]
    left = gaps <= 1e-12 * np.abs(lam).max()
    others = np.where(left, 0.0, -c / np.where(left, 1.0, gaps))
    if lam[0] <= 0 and np.linalg.norm(c[left]) <= 1e-13 * size and np.linalg.norm(others) <= radius:  # the hard case
        if lam[0] < 0:
            others[0] = np.sqrt(radius**2 - others @ others)
        return v @ others
    low, high = max(0.0, lam[0]), max(0.0, lam[0]) + np.linalg.norm(g) / radius  # sigma + lambda_min
    for _ in range(300):
        middle = 0.5 * (low + high)
        longer = not np.linalg.norm(np.where(c == 0, 0.0, c / (gaps + middle))) <= radius
        low, high = (middle, high) if longer else (low, middle)
    t = np.where(c == 0, 0.0, -c / (gaps + high))
    return v @ t * min(1.0, radius / np.linalg.norm(t))


def kkt_residual(b: Array, g: Array, s: Array, sigma: float, radius: float, curvature: float = 0.0) -> float:
    """How far (s, sigma) is from optimal, relative to ||g|| + radius max(||B||, curvature): More and Sorensen's conditions.

    (B + sigma I)s = -g, B + sigma I >= 0, sigma >= 0, sigma (radius - ||s||) = 0, ||s|| <= radius.
    """
    lam = np.linalg.eigvalsh(b)
    size = np.linalg.norm(g) + radius * max(np.abs(lam).max(), curvature)
    if size == 0:
        return 0.0
    broken = [
        np.linalg.norm(b @ s + sigma * s + g) / size,
        max(0.0, -(lam[0] + sigma)) * radius / size,
        max(0.0, -sigma) * radius / size,
        sigma * abs(radius - np.linalg.norm(s)) / size,
        max(0.0, np.linalg.norm(s) / radius - 1),
    ]
    return float(max(broken))


def cauchy_decrease(b: Array, g: Array, radius: float) -> float:
    """Decrease of the model at its minimiser along -g within the ball."""
    norm = float(np.linalg.norm(g))
    if norm == 0:
        return 0.0
    curvature = float((g / norm) @ b @ (g / norm))
    length = radius if curvature <= 0 else min(radius, norm / curvature)
    return norm * length - 0.5 * curvature * length**2
