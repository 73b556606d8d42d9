"""The mean of the iterates against its weights written out, what it leaves alone, and its state."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from apts_cases import settings, solver
from baseline_cases import stepper

from apts_mpi.baseline import METHODS, Method
from apts_mpi.presets import preset
from apts_mpi.solver.average import Averaged, result_of


@pytest.mark.parametrize("method", METHODS)
def test_a_method_heeds_its_own_key_alone(method: Method) -> None:
    for of_apts, of_others in ((0, 0), (3, 0), (0, 3), (3, 8)):
        config = preset("default", method, solver={"subdomains": 2, "average": of_apts}, baseline={"average": of_others})
        wanted = of_apts if method == "apts" else of_others
        built, _, _ = stepper(config)
        assert config.average == wanted and isinstance(built, Averaged) == (wanted > 0)


def weights(power: int, count: int) -> np.ndarray[Any, Any]:
    """What iterates 0..count-1 weigh: the recursion unrolled, product by product."""
    share = [(power + 1) / (k + power + 1) for k in range(count)]
    return np.array([share[j] * np.prod([1 - share[k] for k in range(j + 1, count)]) for j in range(count)])


@pytest.mark.parametrize("power", [1, 8])
def test_the_mean_is_that_of_the_iterates_and_the_method_does_not_see_it(power: int) -> None:
    inner, _ = solver(settings("default"), 3, overlap=0.0, batch=30)
    alone, _ = solver(settings("default"), 3, overlap=0.0, batch=30)
    mean, thetas = Averaged(inner, power), []
    for k in range(6):
        info, bare = mean.step(k // 2, k % 2), alone.step(k // 2, k % 2)
        assert (info.loss, info.radius, info.rho) == (bare.loss, bare.radius, bare.rho)
        assert torch.equal(mean.theta, alone.theta)
        thetas.append(alone.theta.double().numpy().copy())
    found = weights(power, 6)
    assert found.sum() == pytest.approx(1) and (np.diff(found) > 0).all()
    np.testing.assert_allclose(mean.mean.double().numpy(), found @ np.array(thetas), rtol=1e-5, atol=1e-7)
    assert result_of(mean) is mean.mean and result_of(alone) is alone.theta


def test_a_state_goes_on_with_the_same_bits() -> None:
    one, other = (Averaged(solver(settings("default"), 3, overlap=0.0, batch=30)[0], 8) for _ in range(2))
    for k in range(3):
        one.step(k // 2, k % 2)
    state = one.state()
    other.theta.copy_(one.theta)
    other.restore_(type(state)({name: value.clone() for name, value in state.shared.items()}, state.own))
    other.recall_()
    for k in range(3, 6):
        one.step(k // 2, k % 2)
        other.step(k // 2, k % 2)
    assert torch.equal(one.mean, other.mean) and torch.equal(one.theta, other.theta)
    other.restore_(type(state)({name: value for name, value in state.shared.items() if not name.startswith("mean")}, state.own))
    assert torch.equal(other.mean, other.theta)
    other.step(3, 0)
    assert torch.equal(other.mean, other.theta)  # the first iterate alone
