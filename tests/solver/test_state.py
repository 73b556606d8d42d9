"""A method that is stopped, kept and built again goes on with the same bits, whatever it remembers."""

from __future__ import annotations

from dataclasses import astuple, replace
from typing import Any

import pytest
import torch
from apts_cases import settings, solver

from apts_mpi.config import Config
from apts_mpi.contracts import State
from apts_mpi.solver.build import Stepper, build_stepper
from apts_mpi.timing import Timers

CASES: dict[str, dict[str, Any]] = {
    "lsr1": {},
    "paper": {"name": "paper"},
    "sweep": {"name": "default", "local": {"chunk": 4, "chunks_min": 2}},
    "sweep, two pairs": {"name": "default", "local": {"chunk": 4, "chunks_min": 2, "memory": 2}},
    "first order": {"local": {"solver": "first"}, "global_step": {"solver": "first"}},
    "small memory": {"global_step": {"memory": 1}},
    "no memory": {"global_step": {"memory": 0}, "local": {"memory": 0}},
    "sgd": {"method": "sgd", "baseline": {"schedule": "cosine", "nesterov": True}},
    "sgd without momentum": {"method": "sgd", "baseline": {"momentum": 0.0}},
    "adam": {"method": "adam"},
    "adamw": {"method": "adamw", "baseline": {"weight_decay": 0.01}},
    "local-sgd": {"method": "local-sgd", "baseline": {"period": 2}},
    "trust-region": {"method": "trust-region"},
    "trust-region, first order": {"method": "trust-region", "global_step": {"solver": "first"}},
}


def stepper(config: Config, batch: int, dtype: torch.dtype) -> Stepper:
    apts, _ = solver(config, 3, samples=61, batch=batch, dtype=dtype)
    objective, comm = apts._objective, apts._exchange._comm
    return build_stepper(config, apts.theta, objective, comm, Timers(), 3)


def steps(method: Stepper, first: int, last: int, batches: int) -> list[tuple[Any, ...]]:
    return [astuple(method.step(k // batches, k % batches)) for k in range(first, last)]


def kept(state: State) -> State:
    """A copy, as a checkpoint makes one."""
    return State(
        {name: value.clone() for name, value in state.shared.items()}, [{n: v.clone() for n, v in own.items()} for own in state.own]
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [0, 20])
@pytest.mark.parametrize("case", CASES)
def test_goes_on_with_the_same_bits(case: str, batch: int, dtype: torch.dtype) -> None:
    config = settings(**CASES[case])
    if batch and config.method == "local-sgd":
        config = replace(config, baseline=replace(config.baseline, period=3))
    batches = 1 if config.method == "local-sgd" or not batch else 3
    whole = stepper(config, batch, dtype)
    wanted = steps(whole, 0, 12, batches)
    for cut in (1, 7):
        first = stepper(config, batch, dtype)
        steps(first, 0, cut, batches)
        theta, state = first.theta.clone(), kept(first.state())
        steps(first, cut, cut + 2, batches)  # what happens afterwards must not reach what was kept
        second = stepper(config, batch, dtype)
        second.theta.copy_(theta)
        second.restore_(state)
        second.recall_()
        found = steps(second, cut, 12, batches)
        assert str(found) == str(wanted[cut:])  # as text: nan is nan
        assert torch.equal(second.theta, whole.theta)


def test_without_the_state_the_bits_differ() -> None:
    """Else the test above would show nothing."""
    config = settings()
    whole, fresh = stepper(config, 20, torch.float64), stepper(config, 20, torch.float64)
    steps(whole, 0, 7, 3)
    fresh.theta.copy_(whole.theta)
    assert str(steps(fresh, 7, 9, 3)) != str(steps(whole, 7, 9, 3))


def test_a_state_may_be_restored_without_what_the_subdomains_own() -> None:
    config = settings()
    first, second = stepper(config, 0, torch.float64), stepper(config, 0, torch.float64)
    steps(first, 0, 5, 1)
    second.theta.copy_(first.theta)
    second.restore_(State(kept(first.state()).shared, []))
    second.recall_()
    info = second.step(5, 0)
    assert info.k == 5 and info.radius == first.radius  # type: ignore[attr-defined]
