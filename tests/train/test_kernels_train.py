"""Whole runs with the compiled kernels against the same runs with their torch twins."""

from __future__ import annotations

import pytest
import torch
from train_cases import network, settings, task

from apts_mpi import Result, train
from apts_mpi.native import extension, kernels, small
from apts_mpi.parallel.serial import SerialCommunicator

pytestmark = pytest.mark.skipif(extension.extension() is None, reason="no kernels were compiled")


def decisions(result: Result) -> list[tuple[bool, bool, int]]:
    return [(step.accepted, step.global_accepted, step.local_accepted) for step in result.steps]


@pytest.mark.parametrize("batch", [0, 200])
@pytest.mark.parametrize(("name", "iterations"), [("default", 8), ("lsr1", 6)])
def test_kernels_and_twins_take_the_same_steps(name: str, iterations: int, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64 sums of another order differ by 1e-15, which L-SR1 multiplies by ten or so in every outer iteration."""
    x, y = task(600)
    config = settings(name, model={"dtype": "float64"}, data={"batch": batch}, stop={"iterations": iterations}, solver={"subdomains": 2})

    def run() -> Result:
        return train(network(hidden=16).double(), x.double(), y, comm=SerialCommunicator(), config=config)

    with_kernels = run()
    monkeypatch.setattr(kernels, "compiled", lambda like: False)
    monkeypatch.setattr(small, "compiled", lambda: False)
    with_twins = run()
    assert len(with_kernels.steps) == iterations and decisions(with_kernels) == decisions(with_twins)
    assert not torch.equal(with_kernels.theta, with_twins.theta), "both runs used the same arithmetic"
    torch.testing.assert_close(with_kernels.theta, with_twins.theta, rtol=0, atol=1e-11)
