"""compact.py and obs.py against dense matrices: the same B, and the best step for it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from reference.dense_sr1 import formula, recursion
from reference.dense_trust_region import cauchy_decrease, kkt_residual, solve_dense, value
from solver_cases import Array, Case, cases, memories

from apts_mpi.solver.compact import Gram, Spectrum, magnitude, psi_gram, spectrum, sr1
from apts_mpi.solver.obs import GradProducts, minimise

NOISE = 18 * float(np.finfo(np.float64).eps)
CUT = 1e-9


def gram_of(case: Case) -> Gram:
    return Gram(case.steps @ case.steps.T, case.steps @ case.changes.T, case.changes @ case.changes.T)


def psi_of(case: Case) -> Array:
    return (case.changes - case.gamma * case.steps).T


def amplification(case: Case, gram: Gram) -> float:
    """How much the recursion amplifies relative errors of the inner products."""
    compact = sr1(gram, case.gamma, NOISE)
    size, worst = magnitude(gram, case.gamma), 1.0
    for j, i in enumerate(compact.used):
        reach = float(np.abs(compact.p[:, j]) @ size)
        u = np.sqrt(max(float(compact.p[:, j] @ psi_gram(gram, case.gamma) @ compact.p[:, j]), 0.0))
        worst = max(worst, reach * np.sqrt(gram.ss[i, i]) / abs(compact.delta[j]), reach / max(u, 1e-300))
    return worst


def model_of(case: Case, cut: float = CUT) -> tuple[Gram, Spectrum]:
    gram = gram_of(case)
    return gram, spectrum(gram, sr1(gram, case.gamma, NOISE), NOISE, cut, case.steps.shape[1])


@pytest.mark.fault(8)
@pytest.mark.fault(9)
@pytest.mark.timeout(3600)
@given(memories())
@cases(0.1)
def test_compact_matrix_is_the_dense_recursion(case: Case) -> None:
    gram = gram_of(case)
    compact = sr1(gram, case.gamma, NOISE)
    dense, used = recursion(case.steps, case.changes, case.gamma)
    growth = amplification(case, gram)
    if list(compact.used) != used or growth > 1e5:
        return  # a pair on the edge of the admission test; rounding decides
    psi = psi_of(case)
    b = case.gamma * np.eye(len(dense)) + psi @ compact.middle() @ psi.T
    largest = max(np.abs(recursion(case.steps[:i], case.changes[:i], case.gamma)[0]).max() for i in range(len(case.steps) + 1))
    terms = np.abs(psi).max(initial=0) ** 2 * np.abs(compact.middle()).max(initial=0)
    assert np.abs(b - dense).max() <= 1e-14 * growth**2 * max(largest, terms)


@pytest.mark.timeout(3600)
@given(memories())
@cases(0.05)
def test_recursion_is_the_formula_when_nothing_is_skipped(case: Case) -> None:
    compact = sr1(gram_of(case), case.gamma, NOISE)
    if len(compact.used) < len(case.steps):
        return
    expected = formula(case.steps, case.changes, case.gamma)
    if expected is None:
        return
    psi = psi_of(case)
    b = case.gamma * np.eye(len(expected)) + psi @ compact.middle() @ psi.T
    terms = np.abs(psi).max(initial=0) ** 2 * np.abs(compact.middle()).max(initial=0)
    assert np.abs(b - expected).max() <= 1e-9 * (np.abs(expected).max() + terms)


@pytest.mark.fault(8)
@pytest.mark.fault(9)
@pytest.mark.fault(11)
@pytest.mark.timeout(3600)
@given(memories())
@cases(0.12)
def test_step_is_optimal_for_the_matrix_of_the_spectrum(case: Case) -> None:
    """Whatever was dropped, the step is the best one for B = gamma I + Q (Lambda - gamma) Q'."""
    n = case.steps.shape[1]
    gram, model = model_of(case)
    q = psi_of(case) @ model.basis
    assert np.abs(q.T @ q - np.eye(q.shape[1])).max(initial=0) <= 1e-5
    q = np.linalg.qr(q)[0] if q.size else q
    q *= np.sign(np.sum(q * (psi_of(case) @ model.basis), axis=0))
    b = case.gamma * np.eye(n) + (q * (model.eigenvalues - case.gamma)) @ q.T
    check_step(case, gram, model, b, tolerance=max(1e-6, math.sqrt(model.noise)))


@pytest.mark.fault(8)
@pytest.mark.fault(11)
@pytest.mark.timeout(3600)
@given(memories())
@cases(0.13)
def test_step_is_optimal_for_the_dense_matrix(case: Case) -> None:
    gram, model = model_of(case)
    dense, used = recursion(case.steps, case.changes, case.gamma)
    compact = sr1(gram, case.gamma, NOISE)
    if list(compact.used) != used or amplification(case, gram) > 1e4 or 0 < len(model.eigenvalues) < np.linalg.matrix_rank(psi_of(case)):
        return
    size = magnitude(gram, case.gamma)[compact.used]
    scaled = psi_gram(gram, case.gamma)[np.ix_(compact.used, compact.used)] / np.outer(size, size)
    w = np.linalg.eigvalsh(scaled) if len(scaled) else np.ones(1)
    if w[w > CUT * w[-1]][0] < 1e-5 * w[-1]:
        return
    check_step(case, gram, model, dense, tolerance=1e-6)


def check_step(case: Case, gram: Gram, model: Spectrum, b: Array, tolerance: float) -> None:
    """The step is within the ball and optimal, and what is said about it is true."""
    g, radius, n = case.grad, case.radius, len(case.grad)
    solution, weights = minimise(gram, model, GradProducts(case.steps @ g, case.changes @ g, float(g @ g)), n, radius)
    s = weights.grad * g + case.steps.T @ weights.s + case.changes.T @ weights.y
    curvature = max(np.abs(np.linalg.eigvalsh(b)).max(), magnitude_of_terms(case))
    size = np.linalg.norm(g) + radius * curvature
    assert np.linalg.norm(s) <= radius * (1 + max(tolerance, 1e-6))
    assert np.linalg.norm(s) == pytest.approx(solution.step_norm, rel=tolerance, abs=tolerance * radius)
    assert solution.predicted == pytest.approx(-value(b, g, s), rel=tolerance, abs=tolerance * size * radius)
    assert solution.predicted >= cauchy_decrease(b, g, radius) - tolerance * size * radius
    if unreachable(case, model):
        return  # the leftmost eigenvector lies outside all rows of the memory, see obs.minimise
    assert kkt_residual(b, g, s, solution.sigma, radius, curvature) <= tolerance
    assert value(b, g, s) <= value(b, g, solve_dense(b, g, radius)) + tolerance * size * radius


def magnitude_of_terms(case: Case) -> float:
    """The size of what B is a sum of; the sum itself may cancel to nothing."""
    lengths = [(float(np.linalg.norm(y)), float(np.linalg.norm(s))) for s, y in zip(case.steps, case.changes, strict=True)]
    return abs(case.gamma) + max((y / s for y, s in lengths if s > 0), default=0.0)


def unreachable(case: Case, model: Spectrum) -> bool:
    """Is gamma the leftmost eigenvalue, with neither g nor a row of S outside the span of Psi?"""
    if case.gamma >= min(model.eigenvalues, default=0.0) or case.gamma >= 0:
        return False
    q = np.linalg.qr(psi_of(case) @ model.basis)[0] if model.basis.size else np.zeros((len(case.grad), 0))
    outside = [v - q @ (q.T @ v) for v in (case.grad, *case.steps)]
    return all(np.linalg.norm(o) <= 1e-3 * np.linalg.norm(v) for o, v in zip(outside, (case.grad, *case.steps), strict=True))


@pytest.mark.fault(11)
def test_gamma_leftmost_without_gradient_uses_a_row_of_s() -> None:
    steps, changes = np.array([[1.0, 1.0, 0.0]]), np.array([[3.0, -1.0, 0.0]])  # psi = (4, 0, 0) at gamma = -1
    case = Case(steps, changes, -1.0, np.array([1.0, 0.0, 0.0]), 5.0)
    gram, model = model_of(case)
    b, _ = recursion(steps, changes, -1.0)
    products = GradProducts(steps @ case.grad, changes @ case.grad, 1.0)
    solution, weights = minimise(gram, model, products, 3, 5.0)
    s = weights.grad * case.grad + steps.T @ weights.s + changes.T @ weights.y
    assert solution.hard_case and abs(s[1]) > 1 and s[2] == 0
    assert kkt_residual(b, case.grad, s, solution.sigma, 5.0) <= 1e-12


@pytest.mark.fault(11)
def test_gamma_leftmost_and_no_row_outside_leaves_the_step_in_the_span() -> None:
    steps, changes = np.array([[1.0, 0.0, 0.0]]), np.array([[3.0, 0.0, 0.0]])
    case = Case(steps, changes, -1.0, np.array([1.0, 0.0, 0.0]), 5.0)
    gram, model = model_of(case)
    solution, weights = minimise(gram, model, GradProducts(steps @ case.grad, changes @ case.grad, 1.0), 3, 5.0)
    s = weights.grad * case.grad + steps.T @ weights.s + changes.T @ weights.y
    assert s == pytest.approx([-1 / 3, 0, 0]) and solution.predicted == pytest.approx(1 / 6)


@pytest.mark.fault(8)
def test_collinear_directions_are_dropped_at_the_cut() -> None:
    steps = np.array([[1.0, 0.0, 0.0], [1.0, 1e-3, 0.0]])
    changes = steps @ np.diag([2.0, 5.0, 1.0])
    case = Case(steps, changes, 1.0, np.ones(3), 1.0)
    assert len(model_of(case, cut=1e-9)[1].eigenvalues) == 2
    assert len(model_of(case, cut=1e-2)[1].eigenvalues) == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_products_give_a_flagged_zero_step(bad: float) -> None:
    case = Case(np.eye(2, 4), 2 * np.eye(2, 4), 1.0, np.ones(4), 1.0)
    gram, model = model_of(case)
    for products in (GradProducts(np.ones(2), np.ones(2), bad), GradProducts(np.array([1.0, bad]), np.ones(2), 4.0)):
        solution, weights = minimise(gram, model, products, 4, 1.0)
        assert not solution.finite and solution.predicted == 0
        assert weights.grad == 0 and not weights.s.any() and not weights.y.any()


@pytest.mark.fault(8)
@pytest.mark.fault(10)
def test_overflowing_gram_matrix_falls_back_to_gamma() -> None:
    gram = Gram(np.full((1, 1), 1e300), np.full((1, 1), 1e300), np.full((1, 1), np.inf))
    model = spectrum(gram, sr1(gram, 1.0, NOISE), NOISE, CUT, 5)
    assert len(model.eigenvalues) == 0 and model.gamma == 1.0
