"""When an outer iteration cannot make a step, and what that means for the run: in full batch, and in minibatches."""

from __future__ import annotations

import math

import pytest
import torch
from baseline_cases import stepper

from apts_mpi.config import Config
from apts_mpi.contracts import Status
from apts_mpi.presets import preset
from apts_mpi.problem.objective import DataObjective

METHODS = [("apts", "default"), ("apts", "lsr1"), ("trust-region", "default")]


def settings(method: str, name: str, **stop: float) -> Config:
    return preset(name, method, solver={"subdomains": 2}, **({"global_step": {"solver": "lsr1"}} if method != "apts" else {}), stop=stop)


class Spoiled:
    """An objective whose minibatches in ``bad`` have value and gradient times ``factor``."""

    def __init__(self, objective: DataObjective, bad: set[int], factor: float) -> None:
        self._select, self.batch = objective.select, 0
        objective.select = self.select  # type: ignore[method-assign]
        for subdomain in objective.subdomains:
            for name in ("owned", "owned_by_chunk"):
                setattr(subdomain, name, self.spoil(getattr(subdomain, name), bad, factor))

    def select(self, epoch: int, batch: int) -> None:
        self.batch = batch
        self._select(epoch, batch)

    def spoil(self, inner, bad: set[int], factor: float):  # type: ignore[no-untyped-def]
        def evaluate(theta, grad, *more):  # type: ignore[no-untyped-def]
            value = inner(theta, grad, *more)
            if self.batch not in bad:
                return value
            if grad is not None:
                grad.mul_(factor)
            return value * factor

        return evaluate


@pytest.mark.fault(1)
@pytest.mark.parametrize(("method", "name"), METHODS)
@pytest.mark.parametrize("factor", [math.nan, 0.0])
@pytest.mark.parametrize("first", [0, 1])
def test_a_minibatch_without_a_step_is_left_out(method: str, name: str, factor: float, first: int) -> None:
    fast, objective, orders = stepper(settings(method, name), batch=20)
    assert orders[0].batches == 3
    Spoiled(objective, {first}, factor)
    moved = False
    for k in range(9):
        theta = fast.theta.clone()
        info = fast.step(k // 3, k % 3)
        assert info.status is Status.RUNNING, (k, info.status)
        if k % 3 == first:
            assert torch.equal(theta, fast.theta) and not (info.accepted or info.global_accepted)
            assert not info.loss > 0 and info.step_norm == 0
        else:
            moved = moved or not torch.equal(theta, fast.theta)
            assert info.loss > 0 and math.isfinite(info.loss_new)
    assert moved and bool(torch.isfinite(fast.theta).all())


@pytest.mark.fault(1)
@pytest.mark.parametrize(("method", "name"), METHODS)
def test_as_many_as_allowed_in_a_row_end_the_run(method: str, name: str) -> None:
    fast, objective, _ = stepper(settings(method, name, nonfinite=4), batch=20)
    Spoiled(objective, {1, 2}, math.nan)  # never more than two in a row
    assert all(fast.step(k // 3, k % 3).status is Status.RUNNING for k in range(6))
    fast, objective, _ = stepper(settings(method, name, nonfinite=4), batch=20)
    Spoiled(objective, {0, 1, 2}, math.nan)
    theta = fast.theta.clone()
    assert [fast.step(k // 3, k % 3).status for k in range(4)] == [Status.RUNNING] * 3 + [Status.NONFINITE]
    assert torch.equal(theta, fast.theta)


@pytest.mark.fault(6)
@pytest.mark.parametrize(("method", "name"), METHODS)
@pytest.mark.parametrize(("factor", "status"), [(math.nan, Status.NONFINITE), (0.0, Status.STATIONARY)])
def test_in_full_batch_it_ends_the_run_at_once(method: str, name: str, factor: float, status: Status) -> None:
    fast, objective, _ = stepper(settings(method, name), batch=0)
    Spoiled(objective, {0}, factor)
    theta = fast.theta.clone()
    assert fast.step(0, 0).status is status and torch.equal(theta, fast.theta)


def test_the_first_radius_is_found_where_the_first_step_can_be_made() -> None:
    """Also by a run that has stopped and gone on in between."""
    config = settings("apts", "default")
    fast, objective, _ = stepper(config, batch=20)
    Spoiled(objective, {0}, math.nan)
    assert fast.step(0, 0).radius == config.trust_region.radius_init
    later, objective, _ = stepper(config, batch=20)
    Spoiled(objective, {0}, math.nan)
    later.restore_(fast.state())
    later.recall_()
    for run in (fast, later):
        infos = [run.step(0, k) for k in (1, 2)]
        assert infos[0].radius != config.trust_region.radius_init and infos[0].value_samples > infos[1].value_samples
    assert torch.equal(fast.theta, later.theta)
