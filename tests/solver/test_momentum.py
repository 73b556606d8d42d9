"""Momentum of the summed steps against its formula, where it must do nothing, its bound and its state."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from apts_cases import settings, solver
from hypothesis import given
from hypothesis import strategies as st

from apts_mpi.contracts import State
from apts_mpi.drift import fingerprint
from apts_mpi.solver.momentum import Momentum

N = 7


def vectors(seed: int, count: int) -> list[torch.Tensor]:
    rng = np.random.default_rng(seed)
    return [torch.from_numpy(rng.standard_normal(N)) for _ in range(count)]


def downhill(grad: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    return step if float(grad @ step) < 0 else -step


def after(last: torch.Tensor, accepted: bool = True) -> Momentum:
    """A momentum whose last summed step is ``last``."""
    found, step = Momentum(last, True), last.clone()
    found.add_(step, -last, float(last.norm()), math.inf)
    assert torch.equal(step, last)  # there is none before the first
    found.keep(step, accepted)
    return found


@given(st.integers(0, 1000), st.floats(1.01, 20), st.floats(1, 3))
def test_the_formula_written_out(seed: int, spread: float, room: float) -> None:
    last, step, grad = vectors(seed, 3)
    step = downhill(grad, step)
    mine, length = step.clone(), spread * float(step.norm())
    radius = room * float(step.norm())
    slope, square = after(last).add_(mine, grad, length, radius)
    wanted = step + (1 - 1 / spread) * last
    wanted = wanted * min(1.0, radius / float(wanted.norm()))
    if float(grad @ (step + (1 - 1 / spread) * last)) > float(grad @ step) / 2:
        wanted = step
    np.testing.assert_allclose(mine, wanted, rtol=1e-9, atol=1e-12)
    assert slope == pytest.approx(float(grad @ mine), rel=1e-6, abs=1e-9)
    assert square == pytest.approx(float(mine @ mine), rel=1e-6)


def test_steps_that_agree_keep_nothing_of_the_last_one() -> None:
    last, step, grad = vectors(1, 3)
    step = downhill(grad, step)
    mine = step.clone()
    after(last).add_(mine, grad, float(step.norm()), 100.0)
    np.testing.assert_allclose(mine, step, rtol=1e-7, atol=1e-7)


def test_it_is_shortened_to_the_radius() -> None:
    step, last, grad = (torch.tensor(x, dtype=torch.float64) for x in ([3.0, 4.0], [30.0, 40.0], [-0.6, -0.8]))
    slope, square = after(last).add_(step, grad, 10.0, 7.0)  # mu = 1/2: as long as 30
    np.testing.assert_allclose(step, [4.2, 5.6], rtol=1e-12)
    assert (slope, square) == (pytest.approx(-7.0), pytest.approx(49.0))


def test_what_leads_uphill_is_left_out() -> None:
    step, grad = (torch.tensor([x, 1.0], dtype=torch.float64) for x in (-1.0, 0.5))
    mine = step.clone()
    slope, _ = after(torch.tensor([10.0, 10.0], dtype=torch.float64)).add_(mine, grad, 100.0, 1000.0)
    assert torch.equal(mine, step) and slope == pytest.approx(0.5)  # uphill itself: judge refuses it
    step = torch.tensor([-1.0, 0.0], dtype=torch.float64)
    mine = step.clone()
    slope, _ = after(torch.tensor([10.0, 10.0], dtype=torch.float64)).add_(mine, grad, 100.0, 1000.0)
    assert torch.equal(mine, step) and slope == pytest.approx(-0.5)


def test_nothing_is_kept_of_a_refused_step_nor_where_it_is_not_asked_for() -> None:
    last, step, grad = vectors(2, 3)
    none = Momentum(last, False)
    none.add_(last.clone(), -last, float(last.norm()), math.inf)
    none.keep(last, accepted=True)
    for momentum in (after(last, accepted=False), none):
        mine = step.clone()
        momentum.add_(mine, grad, 100.0, 100.0)
        assert torch.equal(mine, step)
    assert Momentum(last, False).state() == {}


def test_a_path_that_is_not_finite_stays_what_it_is() -> None:
    last, step, grad = vectors(3, 3)
    step[0] = math.nan
    mine = step.clone()
    slope, square = after(last).add_(mine, grad, math.nan, 1.0)
    assert torch.equal(mine[1:], step[1:]) and math.isnan(slope) and math.isnan(square)


def test_a_state_goes_on_with_the_same_bits_and_an_empty_one_begins_anew() -> None:
    last, step, grad = vectors(4, 3)
    step = downhill(grad, step)
    one, other, third = after(last), Momentum(last, True), after(last)
    other.restore_({name: value.clone() for name, value in one.state().items()})
    third.restore_({})
    mine, same, alone = (step.clone() for _ in range(3))
    assert one.add_(mine, grad, 50.0, 2.0) == other.add_(same, grad, 50.0, 2.0)
    assert float(mine.norm()) == pytest.approx(2.0)
    assert torch.equal(mine, same) and not torch.equal(mine, step)
    third.add_(alone, grad, 50.0, 2.0)
    assert torch.equal(alone, step)


@pytest.mark.parametrize(("name", "changed"), [("lsr1", {}), ("default", {"combine": "sum"}), ("default", {"momentum": False})])
def test_sums_of_steps_and_other_local_solvers_have_none(name: str, changed: dict[str, object]) -> None:
    fast, _ = solver(settings(name, solver=changed), 3)
    assert not [key for key in fast.state().shared if key.startswith("momentum")]


def test_one_subdomain_walks_as_without() -> None:
    one, none = (solver(settings("default", solver={"momentum": on}), 1, batch=30)[0] for on in (True, False))
    for k in range(4):
        one.step(k // 2, k % 2)
        none.step(k // 2, k % 2)
    assert torch.equal(one.theta, none.theta)


def test_ranks_that_remember_another_step_are_told_apart() -> None:
    last, step = vectors(5, 2)
    state = State({f"momentum.{name}": value for name, value in after(last).state().items()})
    before = fingerprint(step, state)
    state.shared["momentum.last"][3] += 1e-12
    assert fingerprint(step, state) != before
