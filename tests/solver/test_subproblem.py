"""subproblem.py against a dense bisection, and its promises on any input."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from reference.dense_trust_region import cauchy_decrease, kkt_residual, solve_dense, value
from solver_cases import cases

from apts_mpi.solver.subproblem import ITERATIONS, first_order, solve

ANY = st.floats(allow_nan=True, allow_infinity=True)
REAL = st.floats(-1e3, 1e3).map(lambda x: x if abs(x) > 1e-30 else 0.0)  # squares must not underflow in the twin
TAME = st.one_of(st.sampled_from((0.0, 1.0, -1.0, 2.0, 1e-9, -1e-9, 1e-30)), REAL)


@pytest.mark.fault(11)
@pytest.mark.fault(12)
@pytest.mark.timeout(3600)
@given(st.lists(st.tuples(TAME, TAME), min_size=1, max_size=8), st.floats(1e-6, 1e6))
@cases(0.35)
def test_solution_is_optimal(pairs: list[tuple[float, float]], radius: float) -> None:
    lam, g = np.array(pairs).T
    b, solution = np.diag(lam), solve(lam, g, radius)
    s = solution.coefficients
    assert solution.finite and solution.iterations <= ITERATIONS
    assert kkt_residual(b, g, s, solution.sigma, radius) <= 1e-9
    size = radius * (np.linalg.norm(g) + radius * np.abs(lam).max())
    assert value(b, g, s) <= value(b, g, solve_dense(b, g, radius)) + 1e-9 * size
    assert solution.predicted == pytest.approx(-value(b, g, s), rel=1e-9, abs=1e-9 * size)
    assert solution.predicted >= cauchy_decrease(b, g, radius) * (1 - 1e-9)
    assert solution.curvature == pytest.approx(s @ b @ s, rel=1e-9, abs=1e-9 * size)
    assert solution.step_norm == pytest.approx(np.linalg.norm(s), rel=1e-12)
    assert solution.hits_boundary == (solution.step_norm >= radius * (1 - 1e-8))


@pytest.mark.fault(12)
@pytest.mark.timeout(3600)
@given(st.lists(st.tuples(ANY, ANY), min_size=0, max_size=5), ANY)
@example([(math.nan, 0.0)], 1.0)
@cases(0.12)
def test_anything_goes_in_and_nothing_is_raised(pairs: list[tuple[float, float]], radius: float) -> None:
    lam, g = np.array(pairs, dtype=np.float64).reshape(-1, 2).T
    solution = solve(lam, g, radius)
    assert np.isfinite(solution.coefficients).all() and solution.predicted >= 0
    if solution.finite:
        assert np.linalg.norm(solution.coefficients / radius) <= 1 + 1e-6
        assert math.isfinite(solution.predicted) and math.isfinite(solution.step_norm)
    else:
        assert solution.predicted == solution.step_norm == 0 and not solution.coefficients.any()
    if not np.isfinite([*lam, *g, radius]).all() or radius <= 0:
        assert not solution.finite


def test_interior_newton_point() -> None:
    solution = solve(np.array([2.0, 4.0]), np.array([-2.0, 4.0]), 10.0)
    assert solution.coefficients == pytest.approx([1.0, -1.0])
    assert (solution.sigma, solution.hits_boundary, solution.hard_case) == (0.0, False, False)
    assert solution.predicted == pytest.approx(3.0)


@pytest.mark.fault(11)
def test_hard_case_adds_the_leftmost_eigenvector() -> None:
    solution = solve(np.array([1.0, -1.0]), np.array([1.0, 0.0]), 2.0)
    assert solution.hard_case and solution.hits_boundary
    assert solution.sigma == pytest.approx(1.0)
    assert solution.coefficients[0] == pytest.approx(-0.5)
    assert abs(solution.coefficients[1]) == pytest.approx(math.sqrt(4 - 0.25))


@pytest.mark.fault(11)
@pytest.mark.parametrize("tiny", [1e-300, 1e-30, 1e-16, 1e-8])
def test_nearly_hard_case(tiny: float) -> None:
    solution = solve(np.array([1.0, -1.0]), np.array([1.0, tiny]), 2.0)
    assert solution.step_norm == pytest.approx(2.0)
    assert solution.coefficients[1] == pytest.approx(-math.sqrt(4 - 0.25))
    assert solution.iterations < 20


def test_zero_eigenvalue_without_gradient_takes_the_shortest_step() -> None:
    solution = solve(np.array([0.0, 2.0]), np.array([0.0, 1.0]), 5.0)
    assert solution.coefficients == pytest.approx([0.0, -0.5]) and not solution.hits_boundary


def test_no_direction_at_all_is_a_zero_step() -> None:
    solution = solve(np.zeros(0), np.zeros(0), 1.0)
    assert solution.finite and solution.step_norm == 0 and solution.predicted == 0


def test_newton_needs_few_iterations() -> None:
    rng = np.random.default_rng(0)
    counts = []
    for _ in range(300):
        eigenvalues, radius = rng.standard_normal(10) * 10 ** rng.uniform(-3, 3), 10 ** rng.uniform(-3, 3)
        counts.append(solve(eigenvalues, rng.standard_normal(10), radius).iterations)
    assert max(counts) <= 15 and np.mean(counts) <= 6


def test_first_order() -> None:
    assert first_order(4.0, 2.0) == (-0.5, 8.0)
    for norm, radius in ((0.0, 1.0), (math.nan, 1.0), (math.inf, 1.0), (1.0, 0.0), (1.0, math.nan)):
        assert first_order(norm, radius) == (0.0, 0.0)
