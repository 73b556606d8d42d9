"""The solver's arithmetic at its limits."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference.dense_trust_region import kkt_residual
from solver_cases import cases

from apts_mpi.config import TrustRegionConfig
from apts_mpi.solver import subproblem
from apts_mpi.solver.lsr1 import GAMMA_RANGE, LSR1
from apts_mpi.solver.subproblem import ITERATIONS, solve
from apts_mpi.solver.trust_region import Verdict, judge, next_radius

CPU = torch.device("cpu")
RADIUS = st.one_of(st.sampled_from((math.nan, math.inf)), st.floats(max_value=1e30))  # the settings allow no more
NUMBER = st.one_of(st.sampled_from((0.0, 1.0, -1.0, math.nan, math.inf, -math.inf, 1e30, 1e-30, 1e38, 1e-38)), st.floats(width=32))


@pytest.mark.fault(9)
@pytest.mark.fault(10)
@given(st.lists(st.tuples(*[NUMBER] * 6), min_size=1, max_size=6), RADIUS)
@cases(0.15)
def test_gamma_stays_in_bounds_and_no_step_leaves_the_ball_whatever_pairs_come(pairs: list[tuple[float, ...]], radius: float) -> None:
    model = LSR1(3, 2, torch.float32, CPU)
    grad = torch.tensor([1.0, -2.0, 0.5])
    model.begin(grad)
    for pair in pairs:
        step, grad_new = torch.tensor(pair[:3]), torch.tensor(pair[3:])
        if model.observe_(step, grad, grad_new).finite:
            model.accept()
            grad = grad_new
        assert GAMMA_RANGE[0] <= model.gamma <= GAMMA_RANGE[1]
        proposed = model.propose_(grad, radius)
        assert bool(torch.isfinite(proposed.vector).all()) and proposed.predicted >= 0
        if proposed.finite and radius > 1e-15:  # below it squares vanish in float32, and with them the last correction
            assert float(proposed.vector.double().norm()) <= radius * (1 + 1e-6)
    assert 1e-8 <= GAMMA_RANGE[0] < GAMMA_RANGE[1] <= 1e8


@pytest.mark.fault(12)
@pytest.mark.parametrize("newton", [math.nan, math.inf, -math.inf, 0.0])
@pytest.mark.parametrize("seed", range(20))
def test_bisection_alone_solves_the_secular_equation(newton: float, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Newton's correction is spoiled in every iteration: a step out of the bracket, or none, is replaced by half the bracket."""
    rng = np.random.default_rng(seed)
    lam, g, radius = rng.standard_normal(5) * 10.0 ** rng.uniform(-2, 2), rng.standard_normal(5), 10.0 ** rng.uniform(-2, 2)

    class Spoiled:
        """NumPy, whose sums of squares over gaps make Newton's correction ``newton``."""

        def __getattr__(self, name: str) -> Any:
            return getattr(np, name)

        def sum(self, values: Any, *args: Any, **keys: Any) -> Any:
            return Divided() if self.in_root else np.sum(values, *args, **keys)

        in_root = False

    class Divided:
        """As a float it is such that anything over it is ``newton``."""

        def __float__(self) -> float:
            return math.nan if math.isnan(newton) else math.copysign(1e-320, newton) if math.isinf(newton) else math.inf

    spoiled = Spoiled()
    root = subproblem._root

    def in_root(*args: Any) -> Any:
        spoiled.in_root = True
        try:
            return root(*args)
        finally:
            spoiled.in_root = False

    monkeypatch.setattr(subproblem, "np", spoiled)
    monkeypatch.setattr(subproblem, "_root", in_root)
    found = solve(lam, g, radius)
    monkeypatch.undo()
    assert found.iterations == 0 or found.iterations > 3 * solve(lam, g, radius).iterations
    assert found.finite and found.iterations <= ITERATIONS <= 60
    assert kkt_residual(np.diag(lam), g, found.coefficients, found.sigma, radius) <= 1e-9
    assert found.step_norm <= radius * (1 + 1e-9)


@pytest.mark.fault(14)
def test_radius_neither_overflows_nor_vanishes() -> None:
    """Doubled and halved two thousand times, between the widest bounds."""
    rule = TrustRegionConfig(radius_init=1.0, radius_min=1e-300, radius_max=1e30)
    good, bad = (Verdict(1.0, accepted=accepted, converged=False, nonfinite=False) for accepted in (True, False))
    for verdict in (good, bad):
        radius = 1.0
        for _ in range(2000):
            radius = next_radius(radius, verdict, True, rule, rule.radius_min, rule.radius_max)
            assert rule.radius_min <= radius <= rule.radius_max
    assert not any(solve(np.ones(2), np.ones(2), radius).finite for radius in (0.0, 1e-320, math.inf, math.nan))
    at_zero = judge(0.0, 0.0, 1.0, True, rule, 1e-7)
    assert not at_zero.accepted and next_radius(0.0, at_zero, False, rule, 1e-9, 1.0) == 1e-9
    with pytest.raises(ValueError, match=r"radius_max must be in \[1e-06, 1e\+30\], got inf"):
        TrustRegionConfig(radius_max=math.inf)  # half of it would be infinite too
