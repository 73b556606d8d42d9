"""Where the search for the first radius ends, and what it costs, on losses along a line that are known."""

from __future__ import annotations

import math

import pytest

from apts_mpi.config import TrustRegionConfig
from apts_mpi.solver.first_radius import first_radius

GUESSES = (1e-6, 1e-3, 0.3, 1.0, 10.0, 1e6)


class Line:
    """f(0) - f(t) of a quadratic of slope ``slope`` and minimum at ``minimum``; counts its calls."""

    def __init__(self, slope: float, minimum: float) -> None:
        self.slope, self.minimum, self.calls = slope, minimum, 0

    def __call__(self, length: float) -> float:
        self.calls += 1
        return self.slope * length * (1 - length / (2 * self.minimum))


@pytest.mark.parametrize("slope", [1e-8, 1.0, 1e8])
@pytest.mark.parametrize("minimum", [1e-4, 0.9, 1.0, 300.0])
def test_the_largest_power_of_two_that_is_good_from_wherever_it_is_sought(minimum: float, slope: float) -> None:
    """1 - t / (2 minimum) > 0.25 / 2: t < 1.75 minimum."""
    expected = 2.0 ** (math.ceil(math.log2(1.75 * minimum)) - 1)
    for guess in GUESSES:
        line = Line(slope, minimum)
        assert first_radius(line, slope, TrustRegionConfig(radius_init=guess)) == expected
        assert line.calls <= 4 + abs(math.log2(guess / expected)) / 3


@pytest.mark.parametrize("minimum", [1e-12, 1e12])
def test_bounds(minimum: float) -> None:
    for guess in GUESSES:
        rule = TrustRegionConfig(radius_init=guess)
        found = first_radius(Line(1.0, minimum), 1.0, rule)
        assert rule.radius_min <= found <= rule.radius_max
        assert found / (rule.radius_min if minimum < 1 else rule.radius_max) == pytest.approx(1, abs=0.5 if minimum > 1 else 1)
    fixed = TrustRegionConfig(radius_init=3.0, radius_min=3.0, radius_max=3.0)
    assert first_radius(Line(1.0, minimum), 1.0, fixed) == 3.0


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_a_loss_that_is_not_finite_is_not_good(value: float) -> None:
    for guess in GUESSES:
        found = first_radius(lambda t: value if t > 1 else t, 1.0, TrustRegionConfig(radius_init=guess))
        assert found == 1.0
