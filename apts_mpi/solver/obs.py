"""The orthonormal-basis subproblem solver: an L-SR1 trust-region step as coefficients of g, S and Y.

Host, float64, from inner products alone; no vector of length n is touched. In numpy the twin of
``native.small``, which serves where it is compiled. Source: Brust, Erway, Marcia 2017.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from apts_mpi.native import small
from apts_mpi.solver.compact import Gram, Spectrum
from apts_mpi.solver.subproblem import Solution, solve

Array = NDArray[np.float64]


@dataclass(frozen=True)
class GradProducts:
    """Inner products with the gradient: sg[i] = s_i'g, yg[i] = y_i'g (k,), oldest first; gg = g'g."""

    sg: Array
    yg: Array
    gg: float


@dataclass(frozen=True)
class Combination:
    """The step s = grad g + sum_i s[i] s_i + y[i] y_i."""

    grad: float
    s: Array  # (k,)
    y: Array  # (k,)


@np.errstate(all="ignore")
def minimise(gram: Gram, model: Spectrum, products: GradProducts, n_params: int, radius: float) -> tuple[Solution, Combination]:
    """Minimise g's + s'Bs/2 over ||s|| <= radius for the B of ``model``; never raises.

    The eigenbasis is that of B in the span of Psi, and g_perp / ||g_perp|| with eigenvalue gamma. If g_perp is
    zero and gamma < 0 is the leftmost eigenvalue, a row of S that leaves the span takes its place; if none
    does, the step stays in the span.
    """
    if small.compiled():
        b = (model.gamma, model.eigenvalues, model.basis, model.noise)
        found, weights = small.minimise(gram.ss, gram.sy, gram.yy, *b, products.sg, products.yg, products.gg, n_params, radius)
        return Solution(*found), Combination(*weights)
    k, gamma = len(gram.ss), model.gamma
    inside = model.basis.T @ (products.yg - gamma * products.sg)  # Q'g
    outside = products.gg - float(inside @ inside)  # ||g_perp||^2
    if not math.isfinite(outside):
        return solve(np.array([gamma]), np.array([math.nan]), radius), Combination(0.0, np.zeros(k), np.zeros(k))
    if outside <= model.noise * products.gg or len(inside) >= n_params:
        outside = 0.0
    eigenvalues, grad = model.eigenvalues, inside
    extra = None
    if outside == 0 and len(inside) < n_params and gamma < min(eigenvalues, default=0.0) and gamma < 0:
        extra = _leaving(gram, model)
    if outside > 0 or extra is not None:
        eigenvalues, grad = np.append(eigenvalues, gamma), np.append(grad, math.sqrt(outside))
    solution = solve(eigenvalues, grad, radius)
    step, last = solution.coefficients[: len(inside)], float(solution.coefficients[len(inside) :].sum())
    c_grad = last / math.sqrt(outside) if outside > 0 else 0.0
    c_psi = model.basis @ (step - c_grad * inside)  # of the columns y_i - gamma s_i
    c_s = np.zeros(k)
    if extra is not None:
        c_psi, c_s = c_psi + last * extra[0], last * extra[1]
    return solution, Combination(c_grad, c_s - gamma * c_psi, c_psi)


def _leaving(gram: Gram, model: Spectrum) -> tuple[Array, Array] | None:
    """A unit vector Psi a + S'b orthogonal to the span of Psi, as (a, b); None if no row of S leaves that span."""
    squares = np.diag(gram.ss)
    if len(squares) == 0:
        return None
    inside = model.basis.T @ (gram.sy.T - model.gamma * gram.ss)  # Q'S', (r, k)
    left = squares - np.sum(inside**2, axis=0)
    best = int(np.argmax(np.divide(left, squares, out=np.zeros_like(left), where=squares > 0)))
    if not left[best] > model.noise * squares[best]:
        return None
    b = np.eye(len(squares))[best] / math.sqrt(left[best])
    return -model.basis @ (inside @ b), b
