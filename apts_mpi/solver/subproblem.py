"""The trust-region subproblem in an eigenbasis: min g's + s'Bs/2 over ||s|| <= radius.

Once B is diagonal this is a problem of a few float64 numbers on the host; no torch here.
Sources: More, Sorensen 1983; Brust, Erway, Marcia 2017.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

ITERATIONS = 60  # of the root finder; Newton takes about 5, a bisection of the bracket the rest
TINY = float(np.finfo(np.float64).tiny)  # the smallest radius; below it numbers lose their digits
TOLERANCE = 1e-13  # of ||s|| / radius on the boundary


@dataclass(frozen=True)
class Solution:
    """Minimiser of the subproblem in the eigenbasis.

    ``coefficients`` has the shape of the eigenvalues. ``sigma`` >= 0 is the multiplier of
    (B + sigma I) s = -g. ``predicted`` = -(g's + s'Bs/2) >= 0. ``finite`` is False if the input is
    not finite, overflows or has no positive radius; the step is then zero.
    """

    coefficients: Array
    sigma: float
    predicted: float
    step_norm: float
    curvature: float  # s'Bs
    hits_boundary: bool
    hard_case: bool
    finite: bool
    iterations: int  # of the root finder


@np.errstate(all="ignore")
def solve(eigenvalues: Array, grad: Array, radius: float) -> Solution:
    """Minimise sum_i g_i s_i + lambda_i s_i^2 / 2 over ||s|| <= radius; never raises.

    ``eigenvalues`` and ``grad`` are float64 (q,), in any order, of any sign. The step is
    interior if all lambda_i > 0 and the Newton point fits. Otherwise ||s(sigma)|| = radius with
    s_i(sigma) = -g_i / (lambda_i + sigma); in the hard case, where no such sigma exists, a
    component along the leftmost eigenvector takes the step to the boundary. ||s|| <= radius (1 + 1e-12).
    """
    # s = radius t and a common factor make all numbers at most 1 and the radius 1.
    scale = float(np.maximum(np.max(np.abs(grad), initial=0.0), radius * np.max(np.abs(eigenvalues), initial=0.0)))  # nan stays
    if not (math.isfinite(4 * scale) and math.isfinite(4 * radius) and math.isfinite(4 * scale * radius) and radius >= TINY):
        return _zero(len(grad), finite=False)
    if scale == 0:
        return _zero(len(grad), finite=True)
    lam, g = eigenvalues * radius / scale, grad / scale
    if not (np.isfinite(lam).all() and np.isfinite(g).all()):
        return _zero(len(grad), finite=False)
    t, sigma, hard, iterations = _unit_ball(lam, g)
    norm = float(np.linalg.norm(t))
    # Both terms are positive, so nothing cancels: -g't = t'(Lambda + sigma)t.
    predicted = 0.5 * float(np.sum(np.maximum(lam + sigma, 0) * t**2)) + 0.5 * sigma * norm**2
    return Solution(
        coefficients=radius * t,
        sigma=sigma * scale / radius,
        predicted=predicted * scale * radius,
        step_norm=radius * norm,
        curvature=float(np.sum(lam * t**2)) * scale * radius,
        hits_boundary=sigma > 0 or hard or norm >= 1 - 1e-9,
        hard_case=hard,
        finite=True,
        iterations=iterations,
    )


def first_order(grad_norm: float, radius: float) -> tuple[float, float]:
    """Factor c and predicted decrease of s = c g = -radius g / ||g||, the minimiser of g's alone.

    Both are 0 if the gradient is zero or not finite.
    """
    if not (math.isfinite(grad_norm) and math.isfinite(radius) and grad_norm > 0 and radius > 0):
        return 0.0, 0.0
    return -radius / grad_norm, radius * grad_norm


def _zero(size: int, *, finite: bool) -> Solution:
    return Solution(np.zeros(size), 0.0, 0.0, 0.0, 0.0, hits_boundary=False, hard_case=False, finite=finite, iterations=0)


def _unit_ball(lam: Array, g: Array) -> tuple[Array, float, bool, int]:
    """Step, multiplier, hard case?, iterations of the problem with radius 1."""
    left = int(np.argmin(lam))
    lowest = float(lam[left])
    gaps = lam - lowest
    if lowest >= 0:  # a zero eigenvalue without gradient does not prevent a Newton point
        t = np.divide(-g, lam, out=np.zeros_like(g), where=g != 0)
        if np.linalg.norm(t) <= 1:
            return t, 0.0, False, 0
    x, iterations = _root(gaps, g, max(lowest, 0.0))
    t = np.divide(-g, gaps + x, out=np.zeros_like(g), where=g != 0)
    norm = float(np.linalg.norm(t))
    if norm > 1:
        t /= norm
    elif lowest < 0 and norm < 1 - 1e-9:  # hard, or so nearly hard that the root is lost in rounding
        others = float(np.sum(np.delete(t, left) ** 2))
        t[left] = math.copysign(math.sqrt(max(1 - others, 0.0)), t[left] if t[left] else -g[left])
        return t, x - lowest, True, iterations
    return t, max(x - lowest, 0.0), False, iterations


def _root(gaps: Array, g: Array, low: float) -> tuple[float, int]:
    """The x >= low with phi(x) = ||g / (gaps + x)|| = 1, or ``low`` if phi(low) <= 1 already.

    x = sigma + lambda_min keeps full accuracy near the hard case. Newton's method on
    1/phi(x) - 1, which is concave and nearly linear, inside a bracket; bisection when it leaves.
    """
    live = g != 0
    g, gaps = np.abs(g[live]), gaps[live]
    low = max(low, float(np.max(g - gaps, initial=0.0)))  # no component may exceed 1
    high = max(low, float(np.linalg.norm(g)))
    x = low
    for iteration in range(ITERATIONS):
        t = g / (gaps + x)
        phi = float(np.linalg.norm(t))
        if abs(phi - 1) <= TOLERANCE or (phi < 1 and x == low):
            return x, iteration
        low, high = (x, high) if phi > 1 else (low, x)
        x += (phi - 1) * phi**2 / float(np.sum(t**2 / (gaps + x)))
        if not low < x < high:
            x = 0.5 * (low + high)
            if not low < x < high:  # the bracket has no number left inside
                return high, iteration
    return high, ITERATIONS
