"""What goes wrong in numbers and data on one rank, as all ranks see it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import pytest
import torch
from test_training import COMM, RANK, SIZE, VICTIM, Spoiled, apts, apts_cases, everywhere, folder, refused_everywhere, same_bits
from torch import Tensor, nn
from train_cases import CLASSES, INPUTS, network, settings, shards, task

from apts_mpi import Status, run_training, train
from apts_mpi.parallel.handshake import SetupError
from apts_mpi.parallel.serial import SerialCommunicator
from apts_mpi.rundir import read_run

pytestmark = pytest.mark.mpi
__all__ = ["folder"]

SLOPE = {"overlap": 0.0}  # every subdomain has its own samples alone


def slope(targets: Tensor, **sections: Any) -> Any:
    """Regression with one parameter at 0 on equal inputs: the gradient of a sample is minus its target."""
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.zero_()
    config = settings(solver={"subdomains": 4}, data=SLOPE, **sections)
    return train(model, torch.ones(len(targets), 1), targets, loss=lambda out, y: (out[:, 0] - y) ** 2 / 2, config=config, comm=COMM)


@pytest.mark.fault(7)
def test_gradients_that_cancel_are_stationary() -> None:
    """Subdomains pull in opposite directions: no step is made, on any rank."""
    result = slope(torch.tensor([1.0] * 4 + [-1.0] * 4 + [1.0] * 4 + [-1.0] * 4))
    everywhere(result.status is Status.STATIONARY and result.exit_code == 0 and float(result.theta) == 0, result.status)
    everywhere(len(result.steps) == 1 and result.steps[0].step_norm == 0 and result.steps[0].grad_norm == 0, result.steps)


@pytest.mark.fault(7)
def test_a_subdomain_with_a_gradient_of_zero_moves_with_the_others() -> None:
    result = slope(torch.tensor([0.0] * 4 + [1.0] * 12), stop={"epochs": 20})
    everywhere(result.status in (Status.EPOCHS, Status.CONVERGED, Status.STATIONARY), result.status)
    everywhere(abs(float(result.theta) - 0.75) < 1e-3, result.theta)


@pytest.mark.fault(3)
def test_a_gradient_that_is_nan_costs_no_pass_and_no_message() -> None:
    """It is seen in the squared length of the sum, which is needed anyway: two trials, three messages, as in any iteration."""
    solver, comm = apts(settings(), max(SIZE, 2))
    for _ in range(2):
        solver.step()
    if RANK == VICTIM:
        Spoiled(solver, "owned", gradient=True)
    subdomain, calls = solver._objective.subdomains[0], 0
    inner = subdomain.owned

    def counting(theta: Tensor, grad: Tensor | None) -> float:
        nonlocal calls
        calls += 1
        return inner(theta, grad)

    subdomain.owned = counting
    before = comm.large, comm.small
    info = solver.step()
    everywhere(not info.accepted and info.status is Status.RUNNING, info)
    everywhere((calls, comm.large - before[0], comm.small - before[1]) == (2, 3, 0), (calls, comm.large, comm.small))


@pytest.mark.fault(5)
def test_a_sum_beyond_float32_is_rejected_by_all() -> None:
    """Each share is finite and no message is narrower than float32: the sum alone is infinite."""
    solver, _ = apts(settings(), max(SIZE, 2))
    solver.step()
    theta, radius = solver.theta.clone(), solver.radius
    for subdomain in solver._objective.subdomains:
        subdomain.owned = lambda theta, grad: float(grad.fill_(3e38)[0]) if grad is not None else 0.0
    info = solver.step()
    everywhere(bool(torch.isinf(solver._loss.there.grad).all()), solver._loss.there.grad)
    everywhere(not info.accepted and not info.global_accepted and solver.radius == radius / 2 and same_bits(theta, solver.theta), info)


@pytest.mark.fault(28)
@pytest.mark.parametrize("subdomains", [5, 7])
def test_uneven_subdomains_give_the_serial_gradient(subdomains: int) -> None:
    ours, _ = apts(settings(), subdomains, samples=61)
    serial = apts_cases.solver(settings(), 1, samples=61, dtype=torch.float32)[0]
    a, b = ours._begin(0, 0), serial._begin(0, 0)
    error = float(torch.linalg.vector_norm(a.grad - b.grad) / torch.linalg.vector_norm(b.grad))
    everywhere(error <= 1e-6 and abs(a.loss - b.loss) <= 1e-6 * b.loss, (error, a.loss, b.loss))


class Odd(nn.Module):
    """Tied, frozen and unused parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(INPUTS, INPUTS), nn.Linear(INPUTS, INPUTS)
        self.unused, self.out = nn.Linear(2, 2), nn.Linear(INPUTS, CLASSES)
        self.b.weight = self.a.weight
        self.a.bias.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.b(torch.tanh(self.a(x)))))


def odd() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return Odd()


@pytest.mark.fault(20)
@pytest.mark.fault(21)
def test_tied_frozen_and_unused_parameters_train_as_on_one_rank() -> None:
    config = settings(solver={"subdomains": 4}, stop={"epochs": 3}, model={"dtype": "float64"})
    model = odd()
    ours = train(model, *task(), config=config, comm=COMM)
    serial = train(odd(), *task(), config=config, comm=SerialCommunicator())
    error = float(torch.linalg.vector_norm(ours.theta - serial.theta) / torch.linalg.vector_norm(serial.theta))
    everywhere(error <= 1e-5 and ours.loss < ours.steps[0].loss, error)
    everywhere(torch.equal(model.unused.weight, odd().unused.weight.double()) and model.a.weight is model.b.weight)


@pytest.mark.fault(19)
def test_running_statistics_are_refused_by_all() -> None:
    """By the kind of layer, and where a layer is of no known kind by what it does."""
    words = ("layer '1' is a BatchNorm",)
    with refused_everywhere(SetupError, *words):
        train(nn.Sequential(nn.Linear(INPUTS, 8), nn.BatchNorm1d(8), nn.Linear(8, CLASSES)), *task(), config=settings(), comm=COMM)

    class Counting(nn.Linear):
        def __init__(self) -> None:
            super().__init__(INPUTS, CLASSES)
            self.register_buffer("mean", torch.zeros(INPUTS))

        def forward(self, x: Tensor) -> Tensor:
            self.mean += x.mean(0).detach()
            return super().forward(x)

    with refused_everywhere(SetupError, "buffer mean changes whenever the model is evaluated"):
        train(Counting(), *task(), config=settings(), comm=COMM)


@pytest.mark.fault(4)
def test_a_gradient_that_is_nan_at_the_start_names_parameter_and_rank() -> None:
    """The square root of 0 has a value and no derivative; the victim alone holds such a sample."""
    x, y = task()
    row = 240 * VICTIM // SIZE  # the first of its block
    x[row] = 0

    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.out = nn.Parameter(torch.ones(INPUTS)), nn.Linear(INPUTS, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(torch.sqrt((self.scale * x).abs()))

    named = [f"rank {VICTIM} on "] if SIZE > 1 else []
    with refused_everywhere(SetupError, "the gradient with respect to parameter scale holds nan or inf at the start", *named):
        train(Root(), x, y, config=settings(data={"overlap": 0.0}), comm=COMM)


@pytest.mark.fault(32)
def test_the_same_samples_in_two_subdomains_are_noted(folder: Path) -> None:
    """Not so an overlap that was asked for, nor a few samples that happen to be equal."""
    half, labels = task(120)

    def note(x: Tensor, y: Tensor, name: str) -> str:
        config = settings(run={"dir": str(folder / name)}, stop={"epochs": 1}, data={"overlap": 0.3}, solver={"subdomains": 4})
        train(network(), x, y, config=config, comm=COMM)
        COMM.barrier()
        return str(read_run(folder / name).provenance.get("note", ""))

    twice = note(torch.cat([half, half]), torch.cat([labels, labels]), "twice")
    rank = (0, 1, 2, 2)[SIZE - 1]  # that carries subdomain 2 of 4
    words = f"about 100 % of the samples are in several subdomains with other numbers, such as 0 (rank 0) and 2 (rank {rank})"
    everywhere(words in twice, twice)
    once = note(*task(240), "once")
    everywhere("subdomains" not in once, once)
    x, y = task(240)
    x[200], y[200] = x[3], y[3]
    few = note(x, y, "few")
    everywhere("subdomains" not in few, few)


@pytest.mark.fault(34)
@pytest.mark.skipif(SIZE == 1, reason="needs another rank")
def test_a_shard_with_other_values_on_one_node_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The manifests agree; one node's copy of a file holds other values under checksums that are right for them."""
    mine = folder / str(RANK)
    mine.mkdir()
    shards(mine, samples=40 * SIZE, count=SIZE)
    monkeypatch.chdir(mine)
    name = f"train-{VICTIM:05d}-of-{SIZE:05d}.h5"
    if RANK == VICTIM:
        with h5py.File(mine / "set" / name, "r+") as file:
            file["inputs"][7] = 255 - file["inputs"][7]
    with refused_everywhere(SetupError, f"rank {VICTIM} on ", f"set/{name}"):
        run_training(settings(data={"path": "set"}, run={"dir": str(folder / "run")}), COMM)


class Full(nn.Linear):
    """The victim's device is full in its ``after``-th evaluation."""

    def __init__(self, after: int) -> None:
        super().__init__(INPUTS, CLASSES)
        self.after = after

    def forward(self, x: Tensor) -> Tensor:
        self.after -= 1
        if RANK == VICTIM and self.after < 0:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return super().forward(x)


@pytest.mark.fault(50)
def test_a_full_gpu_on_one_rank_at_the_start_is_told_by_all() -> None:
    with refused_everywhere(SetupError, "CUDA out of memory", *([f"rank {VICTIM} on "] if SIZE > 1 else [])):
        train(Full(1), *task(), config=settings(), comm=COMM)


@pytest.mark.fault(50)
def test_a_full_gpu_while_the_data_is_loaded_is_told_by_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **keys: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    if RANK == VICTIM:
        monkeypatch.setattr("apts_mpi.assembly.Samples", full)
    with refused_everywhere(SetupError, "CUDA out of memory", *([f"rank {VICTIM} on "] if SIZE > 1 else [])):
        train(network(), *task(), config=settings(), comm=COMM)
