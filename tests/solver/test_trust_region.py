"""Acceptance and radius, eq. (7)."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from solver_cases import cases

from apts_mpi.config import TrustRegionConfig
from apts_mpi.solver.trust_region import Verdict, judge, next_radius

CONFIG = TrustRegionConfig(radius_init=1.0, radius_min=0.01, radius_max=10.0, shrink=0.5, grow=2.0, eta0=0.0, eta1=0.25, eta2=0.75)
EPS = 2.0**-23


def after(actual: float, predicted: float, *, loss: float = 1.0, finite: bool = True, boundary: bool = True) -> tuple[Verdict, float]:
    verdict = judge(actual, predicted, loss, finite, CONFIG, EPS)
    return verdict, next_radius(1.0, verdict, boundary, CONFIG, CONFIG.radius_min, CONFIG.radius_max)


@pytest.mark.parametrize(
    ("actual", "boundary", "accepted", "radius"),
    [
        (0.9, True, True, 2.0), (0.9, False, True, 1.0), (0.75, True, True, 1.0), (0.5, True, True, 1.0),
        (0.25, True, True, 1.0), (0.2499, True, False, 0.5), (-3.0, True, False, 0.5), (50.0, True, True, 2.0),
    ],
)  # fmt: skip
def test_rule_of_the_ratio(actual: float, boundary: bool, accepted: bool, radius: float) -> None:
    verdict, new = after(actual, 1.0, boundary=boundary)
    assert verdict == Verdict(actual, accepted, converged=False, nonfinite=False)
    assert new == radius


@pytest.mark.fault(2)
@pytest.mark.parametrize("actual", [math.nan, math.inf, -math.inf])
def test_non_finite_value_is_rejected_and_shrunk(actual: float) -> None:
    verdict, radius = after(actual, 1.0)
    assert verdict.nonfinite and not verdict.accepted and radius == 0.5


def test_non_finite_gradient_is_rejected_and_shrunk() -> None:
    verdict, radius = after(0.9, 1.0, finite=False)
    assert verdict.nonfinite and not verdict.accepted and radius == 0.5


@pytest.mark.fault(13)
@pytest.mark.parametrize("predicted", [0.0, -1.0, math.nan, math.inf])
def test_useless_prediction_is_rejected_and_shrunk(predicted: float) -> None:
    verdict, radius = after(0.9, predicted)
    assert not (verdict.accepted or verdict.converged or verdict.nonfinite) and radius == 0.5


@pytest.mark.fault(13)
def test_prediction_below_rounding_is_converged_not_accepted() -> None:
    verdict, radius = after(1e-3, 0.5 * EPS * 100, loss=100.0)
    assert verdict.converged and not verdict.accepted and radius == 1.0
    assert after(1e-3, 2 * EPS * 100, loss=100.0)[0].accepted
    assert after(1e-30, 1e-30, loss=0.0)[0].accepted


@pytest.mark.parametrize(("promise", "converged"), [(0.0, True), (0.9, True), (1.1, False), (1e9, False)])
def test_a_step_that_came_to_nothing_where_there_was_a_slope_is_rejected(promise: float, converged: bool) -> None:
    verdict = judge(1e-3, 0.5 * EPS * 100, 100.0, True, CONFIG, EPS, promise * EPS * 100)
    assert math.isnan(verdict.rho) and verdict.converged == converged and not verdict.accepted and not verdict.nonfinite


@pytest.mark.fault(14)
@given(st.lists(st.tuples(st.floats(allow_nan=True), st.floats(allow_nan=True), st.booleans(), st.booleans()), max_size=30))
@cases(0.05)
def test_radius_stays_within_its_bounds(trials: list[tuple[float, float, bool, bool]]) -> None:
    radius = CONFIG.radius_init
    for actual, predicted, finite, boundary in trials:
        verdict = judge(actual, predicted, 1.0, finite, CONFIG, EPS)
        new = next_radius(radius, verdict, boundary, CONFIG, CONFIG.radius_min, CONFIG.radius_max)
        assert CONFIG.radius_min <= new <= CONFIG.radius_max
        assert new <= radius or verdict.accepted
        radius = new


def test_bounds_take_an_outside_radius_in() -> None:
    verdict = Verdict(0.5, accepted=True, converged=False, nonfinite=False)
    assert next_radius(5.0, verdict, False, CONFIG, 0.0, 2.0) == 2.0
    assert next_radius(1e-9, verdict, False, CONFIG, 0.5, 2.0) == 0.5


def test_a_poor_step_may_be_kept_while_the_radius_shrinks() -> None:
    """eta0 decides about the step, eta1 about the radius; eta0 = 0 is eta1."""
    rule = replace(CONFIG, eta0=0.1)
    poor = judge(0.2, 1.0, 1.0, True, rule, 1e-7)
    assert poor.accepted and next_radius(1.0, poor, True, rule, 0.01, 10.0) == 0.5
    assert not judge(0.05, 1.0, 1.0, True, rule, 1e-7).accepted
    assert not judge(0.2, 1.0, 1.0, True, CONFIG, 1e-7).accepted
    with pytest.raises(ValueError, match="eta0 must be in"):
        replace(CONFIG, eta0=0.3)
