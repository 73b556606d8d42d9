"""Why a run ends: every Status that a run comes to by itself, and what is recorded on the way."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from train_cases import network, settings, task

from apts_mpi import Result, Status, train
from apts_mpi.monitor.lines import COLUMNS
from apts_mpi.parallel.serial import SerialCommunicator
from apts_mpi.rundir import read_run


def run(
    module: nn.Module | None = None, tensors: tuple[Tensor, Tensor] | None = None, loss: Any = "cross_entropy",
    test: tuple[Tensor, Tensor] | None = None, name: str = "default", **sections: dict[str, Any],
) -> Result:  # fmt: skip
    config = settings(name, **sections)
    return train(module or network(), *(tensors or task()), loss=loss, test=test, config=config, comm=SerialCommunicator())


class Scalar(nn.Module):
    """One parameter, which is the output for every sample."""

    def __init__(self, start: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([start]))

    def forward(self, x: Tensor) -> Tensor:
        return self.w.expand(len(x), 1)


EIGHT = torch.ones(8, 1), torch.zeros(8, 1)


@pytest.mark.parametrize(("batch", "per_epoch"), [(0, 1), (60, 4)])
def test_epochs(batch: int, per_epoch: int) -> None:
    result = run(data={"batch": batch}, stop={"epochs": 3})
    assert result.status is Status.EPOCHS and result.exit_code == 0
    assert [(info.k, info.epoch) for info in result.steps] == [(k, k // per_epoch) for k in range(3 * per_epoch)]
    assert all(info.status is Status.RUNNING for info in result.steps)


@pytest.mark.parametrize("epochs", [0, 5])
def test_iterations(epochs: int) -> None:
    result = run(data={"batch": 60}, stop={"epochs": epochs, "iterations": 6})
    assert result.status is Status.ITERATIONS and len(result.steps) == 6


@pytest.mark.parametrize(("limit", "value"), [("passes", 7.0), ("reductions", 9)])
@pytest.mark.parametrize("batch", [0, 60])
def test_a_budget_ends_at_the_first_iteration_that_has_spent_it(batch: int, limit: str, value: float) -> None:
    free = run(data={"batch": batch}, stop={"epochs": 30})
    costs = np.cumsum([info.gradient_samples / 240 if limit == "passes" else info.reductions for info in free.steps])
    result = run(data={"batch": batch}, stop={"epochs": 0, limit: value})
    assert result.status is Status.SPENT and result.exit_code == 0
    assert len(result.steps) == np.flatnonzero(costs >= value)[0] + 1 < len(free.steps)
    spent = {"passes": result.passes, "reductions": result.reductions}[limit]
    assert spent == pytest.approx(costs[len(result.steps) - 1])


def test_target_loss() -> None:
    result = run(stop={"epochs": 50, "target_loss": 0.5})
    assert result.status is Status.TARGET_LOSS and len(result.steps) > 1
    assert result.steps[-1].loss_new <= 0.5 < result.steps[-2].loss_new and result.loss == result.steps[-1].loss_new


def test_target_accuracy() -> None:
    result = run(test=task(100, seed=5), stop={"epochs": 50, "target_accuracy": 85.0})
    assert result.status is Status.TARGET_ACCURACY and 85 <= result.accuracy <= 100 and 1 < len(result.steps) < 50


def test_gradient_norm_at_the_start_makes_no_step() -> None:
    module = network()
    before = nn.utils.parameters_to_vector(module.parameters()).detach().clone()
    result = run(module, stop={"grad_norm": 1e6})
    assert result.status is Status.GRADIENT and result.exit_code == 0 and len(result.steps) == 1
    assert result.steps[0].local_iters == 0 and result.steps[0].step_norm == 0 and torch.equal(result.theta, before)


def test_gradient_norm_later() -> None:
    result = run(stop={"epochs": 200, "grad_norm": 0.05})
    assert result.status is Status.GRADIENT and result.steps[-1].grad_norm <= 0.05 < result.steps[-2].grad_norm


@pytest.mark.fault(6)
def test_stationary_start() -> None:
    result = run(Scalar(0.0), EIGHT, "mse")
    assert result.status is Status.STATIONARY and result.exit_code == 0
    assert len(result.steps) == 1 and result.loss == 0 and float(result.theta) == 0


@pytest.mark.parametrize("radius", [1.0, 100.0])  # 100: steps forth and back, which end where they began
def test_converged_at_the_minimum_of_a_quadratic(radius: float) -> None:
    """The mean of numbers that are no zero residual: the predicted decrease ends below the rounding of f."""
    targets = torch.arange(8.0).view(8, 1)
    result = run(Scalar(0.3), (torch.ones(8, 1), targets), "mse", stop={"epochs": 500}, trust_region={"radius_init": radius})
    assert result.status in (Status.CONVERGED, Status.STATIONARY) and result.exit_code == 0 and len(result.steps) < 100
    assert float(result.theta) == pytest.approx(3.5, abs=1e-3)


@pytest.mark.fault(13)
def test_converged() -> None:
    """f = 1e6 + w^2: what is left to gain vanishes in the rounding of f long before the gradient does."""
    result = run(Scalar(0.1), EIGHT, lambda outputs, targets: 1e6 + outputs[:, 0] ** 2, stop={"epochs": 50})
    assert result.status is Status.CONVERGED and result.exit_code == 0 and len(result.steps) < 50


@pytest.mark.fault(14)
def test_radius_at_its_lower_bound() -> None:
    """Every step of length 1 jumps over the narrow valley."""
    result = run(
        Scalar(0.1), EIGHT, "mse", trust_region={"radius_min": 1.0, "radius_init": 1.0}, global_step={"solver": "none"},
        local={"solver": "first", "iters": 1, "radius_start": 1.0},
    )  # fmt: skip
    assert result.status is Status.RADIUS and result.exit_code == 0 and float(result.theta) == pytest.approx(0.1)


def test_wall_time() -> None:
    at_once = run(stop={"wall_time": 0.0})
    assert at_once.status is Status.WALL_TIME and at_once.exit_code == 0 and len(at_once.steps) == 1
    later = run(data={"batch": 60}, stop={"epochs": 0, "wall_time": 0.3})
    assert later.status is Status.WALL_TIME and len(later.steps) > 1 and 0.3 <= later.seconds < 5


@pytest.mark.fault(1)
def test_nonfinite_trials_in_a_row() -> None:
    """f is nan for w <= 0.05; steps from w = 1 land there until the limit on such trials ends the run."""
    result = run(
        Scalar(1.0), EIGHT, lambda outputs, targets: torch.where(outputs > 0.05, outputs, torch.nan)[:, 0],
        trust_region={"radius_init": 32.0}, global_step={"solver": "first"}, stop={"nonfinite": 3}, solver={"radius": "shared"},
    )  # fmt: skip
    assert result.status is Status.NONFINITE and result.exit_code == 3 and len(result.steps) == 3
    assert float(result.theta) == 1.0 and not any(info.accepted or info.global_accepted for info in result.steps)


def test_nonfinite_trials_are_survived_when_the_radius_gets_small_enough() -> None:
    result = run(
        Scalar(1.0), EIGHT, lambda outputs, targets: torch.where(outputs > 0.05, outputs, torch.nan)[:, 0],
        trust_region={"radius_init": 8.0}, global_step={"solver": "first"}, stop={"nonfinite": 10, "epochs": 8},
        local={"iters": 1, "radius_start": 1.0},
    )  # fmt: skip
    assert result.status is Status.EPOCHS and 0.05 < float(result.theta) < 1.0


def test_nonfinite_data_behind_the_samples_that_are_tried() -> None:
    x, y = task()
    x = x.double()
    x[200, 3] = 1e300  # finite as it is stored, not in the run's float32
    module = network()
    before = nn.utils.parameters_to_vector(module.parameters()).detach().clone()
    result = run(module, (x, y))
    assert result.status is Status.NONFINITE and result.exit_code == 3 and torch.equal(result.theta, before)


def test_first_that_holds_wins() -> None:
    result = run(stop={"epochs": 2, "iterations": 2, "target_loss": 1e9})
    assert result.status is Status.TARGET_LOSS and len(result.steps) == 1


@pytest.mark.parametrize(("evaluate", "measured"), [(0, [9]), (1, [3, 7, 9]), (2, [7, 9])])
def test_test_set_is_evaluated_when_due_and_at_the_end(evaluate: int, measured: list[int], tmp_path: Path) -> None:
    result = run(
        test=task(100, seed=5), data={"batch": 60}, stop={"iterations": 10}, run={"dir": str(tmp_path / "r"), "evaluate": evaluate}
    )
    accuracy = read_run(tmp_path / "r").columns["accuracy"]
    assert np.flatnonzero(np.isfinite(accuracy)).tolist() == measured and accuracy[9] == result.accuracy


def test_test_set_is_evaluated_every_so_many_iterations(tmp_path: Path) -> None:
    keys = {"dir": str(tmp_path / "r"), "evaluate_iterations": 3}
    run(test=task(100, seed=5), data={"batch": 60}, stop={"iterations": 10}, run=keys)
    assert np.flatnonzero(np.isfinite(read_run(tmp_path / "r").columns["accuracy"])).tolist() == [2, 5, 8, 9]


def test_totals_and_records(tmp_path: Path) -> None:
    result = run(data={"batch": 60}, stop={"iterations": 6}, run={"dir": str(tmp_path / "r")})
    stored = read_run(tmp_path / "r")
    assert result.passes == sum(info.gradient_samples for info in result.steps) / 240
    assert result.reductions == sum(info.reductions for info in result.steps)
    assert stored.columns["loss"].tolist() == [info.loss for info in result.steps]
    assert stored.columns["reductions_total"][-1] == result.reductions and math.isnan(stored.columns["accuracy"][-1])
    assert stored.columns["epoch"].tolist() == [(k + 1) / 4 for k in range(6)]
    assert stored.completion is not None and stored.completion.status == Status.ITERATIONS.value
    assert (stored.completion.passes, stored.completion.epochs, stored.completion.subdomains) == (result.passes, 1.5, 1)


def test_monitor_shows_a_line_per_iteration_and_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    run(test=task(100, seed=5), stop={"epochs": 2}, run={"monitor": "plain"})
    shown = "".join(capsys.readouterr())
    for words in ("tensors in memory", "N = 1 on P = 1 ranks", "n = 83", "preset default", "epochs done", "local solve", "not stored"):
        assert words in shown, words


@pytest.mark.parametrize("average", [8, 0])
def test_figures_of_the_mean_of_the_iterates_say_so(average: int, capsys: pytest.CaptureFixture[str]) -> None:
    run(test=task(100, seed=5), stop={"epochs": 2}, run={"monitor": "plain"}, solver={"average": average})
    shown = capsys.readouterr().out
    assert len(re.findall(r"^(?:training loss|test loss|test accuracy) .* \(mean of the iterates\)$", shown, re.M)) == (3 if average else 0)
    assert ("test accuracy, mean of the iterates" in shown) == bool(average)


@pytest.mark.parametrize("test", [True, False])
def test_numbers_to_predict_have_no_accuracy(test: bool, capsys: pytest.CaptureFixture[str]) -> None:
    x = task()[0]
    pair = x, x[:, :1] * 2
    result = run(network(outputs=1), pair, "mse", pair if test else None, stop={"epochs": 2}, run={"monitor": "plain"})
    shown = capsys.readouterr().out
    assert "accuracy" not in shown and "test%" not in shown and "nan" not in shown and "training loss" in shown
    assert ("test loss" in shown) == test == math.isfinite(result.test_loss)
    if test:  # the same samples
        with torch.no_grad():
            net = network(outputs=1)
            torch.nn.utils.vector_to_parameters(result.theta, net.parameters())
            assert result.test_loss == pytest.approx(float(torch.nn.functional.mse_loss(net(x), pair[1])), rel=1e-5)


@pytest.mark.parametrize(
    ("method", "left_out"),
    [("apts", set()), ("trust-region", {"local"}), ("local-sgd", {"rho", "radius", "acc"}), ("sgd", {"rho", "radius", "acc", "local"})],
)
def test_a_log_has_the_columns_that_mean_something(method: str, left_out: set[str], capsys: pytest.CaptureFixture[str]) -> None:
    x, y = task()
    more = {"data": {"batch": 60}, "baseline": {"period": 2}, "stop": {"epochs": 1}, "run": {"monitor": "plain"}}
    train(network(), x, y, test=task(30, seed=5), comm=SerialCommunicator(), config=settings(**more, method=method))
    heading = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("clock"))
    assert {name for name, _, _ in COLUMNS} - set(heading.split()) == left_out
