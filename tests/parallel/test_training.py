"""Training at 1, 2, 3 and 4 ranks: the same numbers as on one, exact message counts, and faults that all ranks hear.

No assertion stands between two collectives on one rank alone: ``everywhere`` first agrees on the verdict. The serial
run that every comparison needs is computed by each rank for itself.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from mpi4py import MPI

sys.path.append(str(Path(__file__).parents[1] / "solver"))
sys.path.append(str(Path(__file__).parents[1] / "train"))
import apts_cases
from torch import nn
from train_cases import network, settings, shards, task

from apts_mpi import Result, Status, run_training, train
from apts_mpi.contracts import Flag, StepInfo
from apts_mpi.parallel.comm import MpiCommunicator
from apts_mpi.parallel.handshake import HandshakeError, SetupError
from apts_mpi.parallel.message import LANE
from apts_mpi.parallel.serial import SerialCommunicator
from apts_mpi.rundir import read_run
from apts_mpi.solver.apts import APTS
from apts_mpi.solver.exchange import SCALARS
from apts_mpi.storage.records import read_parameters

pytestmark = pytest.mark.mpi

WORLD = MPI.COMM_WORLD.Dup()
RANK, SIZE = WORLD.Get_rank(), WORLD.Get_size()
VICTIM = min(1, SIZE - 1)  # the rank that goes wrong
POWER_OF_TWO = SIZE & (SIZE - 1) == 0
COMM = MpiCommunicator(WORLD)


def everywhere(good: object, what: object = "") -> None:
    """Fail on every rank, naming those where ``good`` is false."""
    bad = [rank for rank, fine in enumerate(WORLD.allgather(bool(good))) if not fine]
    assert not bad, f"wrong on rank {bad}; here: {what}"


@contextmanager
def refused_everywhere(kind: type[Exception], *words: str) -> Iterator[None]:
    """Each rank must raise ``kind`` with all ``words``."""
    text = ""
    try:
        yield
    except kind as error:
        text = str(error)
    everywhere(text and all(word in text for word in words), f"{text!r} lacks some of {words}")


@pytest.fixture
def folder() -> Path:
    """One folder for all ranks."""
    return Path(WORLD.bcast(tempfile.mkdtemp() if RANK == 0 else None))


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.numpy().tobytes() == b.numpy().tobytes()


def both(samples: int = 240, **sections: Any) -> tuple[Result, Result]:
    """The same run on all ranks and on one."""
    config, data, test = settings(**sections), task(samples), task(50, seed=5)
    ours = train(network(), *data, test=test, config=config, comm=COMM)
    return ours, train(network(), *data, test=test, config=config, comm=SerialCommunicator())


RUNS: dict[str, dict[str, Any]] = {
    "full batch": {"solver": {"subdomains": 4}, "stop": {"epochs": 4}, "local": {"iters": 5}},
    "paper": {"name": "paper", "solver": {"subdomains": 4}, "stop": {"epochs": 4}},
    "minibatch": {"solver": {"subdomains": 4}, "data": {"batch": 80, "overlap": 0.1}, "stop": {"epochs": 1}, "local": {"iters": 5}},
    "sweep": {"name": "default", "solver": {"subdomains": 8}, "data": {"batch": 120, "overlap": 0.1}, "stop": {"epochs": 2}},
    "pieces": {"solver": {"subdomains": 4}, "comm": {"reduction": "tree", "count_limit": 100}, "stop": {"epochs": 2}},
    "float64": {"solver": {"subdomains": 4}, "model": {"dtype": "float64"}, "stop": {"epochs": 2}, "local": {"iters": 3}},
}


@pytest.mark.skipif(not POWER_OF_TWO, reason="the tree over subdomains is cut evenly by powers of two alone")
@pytest.mark.parametrize("name", RUNS)
def test_same_bits_for_any_number_of_ranks(name: str) -> None:
    ours, serial = both(**RUNS[name])
    everywhere(same_bits(ours.theta, serial.theta), (ours.theta - serial.theta).abs().max())
    everywhere(repr(ours.steps) == repr(serial.steps), "records differ")  # repr: exact, and nan equals nan
    everywhere(ours.accuracy == serial.accuracy and ours.status is serial.status, (ours.accuracy, serial.accuracy))
    everywhere(serial.loss < serial.steps[0].loss)


@pytest.mark.parametrize("subdomains", [4, 5, 7])
def test_same_numbers_where_ranks_do_not_divide_the_subdomains(subdomains: int) -> None:
    ours, serial = both(samples=241, solver={"subdomains": subdomains}, model={"dtype": "float64"}, stop={"epochs": 3}, local={"iters": 4})
    error = float(torch.linalg.vector_norm(ours.theta - serial.theta) / torch.linalg.vector_norm(serial.theta))
    everywhere(error <= 1e-5, error)
    everywhere(WORLD.bcast(ours.theta.numpy().tobytes()) == ours.theta.numpy().tobytes(), "ranks differ")
    counted = [(info.gradient_samples, info.reductions, info.local_iters) for info in ours.steps[:2]]
    everywhere(counted == [(info.gradient_samples, info.reductions, info.local_iters) for info in serial.steps[:2]], counted)


def test_one_subdomain_per_rank_by_default() -> None:
    config = settings(stop={"epochs": 2}, model={"dtype": "float64"})
    ours = train(network(), *task(), config=config, comm=COMM)
    named = replace(config, solver=replace(config.solver, subdomains=SIZE))
    serial = train(network(), *task(), config=named, comm=SerialCommunicator())
    everywhere(torch.allclose(ours.theta, serial.theta, rtol=1e-8, atol=1e-10))


def apts(config: Any, subdomains: int, **options: Any) -> tuple[APTS, MpiCommunicator]:
    """A solver over all ranks and the communicator that counts for it."""
    comm = MpiCommunicator(WORLD)
    return apts_cases.solver(config, subdomains, comm=comm, dtype=torch.float32, **options)[0], comm


def counted(solver: APTS, comm: MpiCommunicator, epoch: int = 0, batch: int = 0) -> tuple[StepInfo, int, int, int]:
    """One step, and its large messages, small messages and bytes."""
    before = comm.large, comm.small, comm.bytes
    info = solver.step(epoch, batch)
    return info, *(now - then for now, then in zip((comm.large, comm.small, comm.bytes), before, strict=True))


CELLS = apts_cases.HIDDEN * (apts_cases.INPUTS + 1) + apts_cases.CLASSES * (apts_cases.HIDDEN + 1) + LANE * len(SCALARS) + len(Flag)


@pytest.mark.parametrize("name", ["lsr1", "paper"])
def test_three_large_messages_in_a_full_batch_iteration(name: str) -> None:
    """numerics 2: three vectors, nothing else, whatever nu and N; the first iteration has one more."""
    solver, comm = apts(settings(name), 4)
    sent = 4 * CELLS if SIZE > 1 else 0
    for k in range(4):
        info, large, small, nbytes = counted(solver, comm)
        wanted = 4 if k == 0 else 3
        everywhere((large, small, nbytes, info.reductions) == (wanted, 0, wanted * sent, wanted), (k, large, small, nbytes))


def test_two_large_messages_and_a_small_one_in_a_sweep_on_minibatches() -> None:
    solver, comm = apts(settings("default"), 4, samples=120, batch=60)
    large_bytes, small_bytes = (4 * CELLS, 4 * (LANE * len(SCALARS) + len(Flag))) if SIZE > 1 else (0, 0)
    for k in range(4):
        info, large, small, nbytes = counted(solver, comm, k // 2, k % 2)
        everywhere(small == 1 if k else 3 <= small <= 12, (k, small))  # at first also those that find the first radius
        everywhere((large, nbytes, info.reductions) == (2, 2 * large_bytes + small * small_bytes, 2), (k, large, nbytes))


@pytest.mark.parametrize("combine", ["sum", "mean"])
@pytest.mark.parametrize("name", ["default", "lsr1"])
def test_local_steps_together_stay_within_the_radius(name: str, combine: str) -> None:
    """The lengths of all (weighted) local steps add to no more than Delta, and so does the length of their sum."""
    solver, _ = apts(settings(name, solver={"combine": combine}), 5, samples=200, batch=100)
    for k in range(4):
        info = solver.step(k // 2, k % 2)
        together = WORLD.allreduce(sum(float(step.double().norm()) for step in solver._steps))
        everywhere(info.step_norm <= together * (1 + 1e-6) <= info.radius * (1 + 2e-6), (info.step_norm, together, info.radius))


@pytest.mark.fault(23)
def test_small_networks_on_many_ranks() -> None:
    """One parameter, fewer than ranks and than pairs in memory."""
    x = torch.linspace(-1, 1, 40).view(-1, 1)
    ours = train(nn.Linear(1, 1, bias=False), x, 3 * x, loss="mse", config=settings(stop={"epochs": 15}), comm=COMM)
    everywhere(abs(float(ours.theta) - 3) < 1e-2, ours.theta)


class Spoiled:
    """Subdomain 0 of a solver whose ``method`` answers nan in some calls."""

    def __init__(self, solver: APTS, method: str, gradient: bool = False) -> None:
        self.subdomain, self.method, self.gradient = solver._objective.subdomains[0], method, gradient
        self.inner, self.bad = getattr(self.subdomain, method), True
        setattr(self.subdomain, method, self)

    def __call__(self, *args: Any) -> float:
        value = self.inner(*args)
        if not self.bad:
            return value
        if self.gradient and args[1] is not None:
            args[1][0] = math.nan
            return value
        return math.nan


@pytest.mark.fault(1)
@pytest.mark.fault(3)
@pytest.mark.parametrize("gradient", [False, True])
def test_nan_on_one_rank_in_the_middle_is_rejected_by_all(gradient: bool) -> None:
    """The same verdict everywhere, theta stays, the radius shrinks, and the run goes on."""
    solver, _ = apts(settings(), max(SIZE, 2))
    for _ in range(2):
        solver.step()
    theta, radius = solver.theta.clone(), solver.radius
    spoiled = Spoiled(solver, "owned", gradient) if RANK == VICTIM else None
    info = solver.step()
    everywhere(len(set(WORLD.allgather(repr(info)))) == 1, info)
    everywhere(not info.accepted and not info.global_accepted and info.status is Status.RUNNING, info)
    everywhere(same_bits(theta, solver.theta) and solver.radius == radius / 2, (radius, solver.radius))
    if spoiled:
        spoiled.bad = False
    after = [solver.step() for _ in range(4)]
    everywhere(any(info.accepted for info in after) and after[-1].loss_new < info.loss, after)
    everywhere(WORLD.bcast(solver.theta.numpy().tobytes()) == solver.theta.numpy().tobytes())


@pytest.mark.fault(1)
class Straight(nn.Module):
    """Its view cannot be taken of no sample at all."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = network()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.layer(inputs.view(inputs.size(0), -1))  # type: ignore[no-any-return]


def test_fewer_test_samples_than_ranks() -> None:
    x, y = task(1, seed=5)
    result = train(Straight(), *task(), test=(x, y), config=settings(stop={"epochs": 1}), comm=COMM)
    everywhere(result.accuracy in (0.0, 100.0), result.accuracy)


def test_nan_on_one_rank_for_ever_ends_the_run_with_the_last_good_theta() -> None:
    """K in a row."""
    solver, _ = apts(settings(stop={"nonfinite": 3}), max(SIZE, 2))
    solver.step()
    theta = solver.theta.clone()
    if RANK == VICTIM:
        Spoiled(solver, "owned")
    found = [solver.step().status for _ in range(3)]
    everywhere(found == [Status.RUNNING, Status.RUNNING, Status.NONFINITE], found)
    everywhere(same_bits(theta, solver.theta))


@pytest.mark.fault(16)
def test_one_rank_rejects_all_its_local_steps_and_the_others_go_on() -> None:
    solver, _ = apts(settings(global_step={"solver": "none"}), max(SIZE, 2), samples=200)
    if RANK == VICTIM:
        Spoiled(solver, "local")
    info = solver.step()
    everywhere(len(set(WORLD.allgather(repr(info)))) == 1, info)
    mine = float(solver._steps[0].norm())
    everywhere(mine == 0 if RANK == VICTIM else mine > 0, mine)
    everywhere(0 < info.local_accepted < info.local_iters and info.step_norm > 0, info)


@pytest.mark.fault(15)
def test_every_rank_rejects_all_its_local_steps() -> None:
    solver, _ = apts(settings(global_step={"solver": "none"}), SIZE, samples=200)
    Spoiled(solver, "local")
    theta, radius = solver.theta.clone(), solver.radius
    info = solver.step()
    everywhere(info.local_accepted == 0 and info.step_norm == 0 and not info.accepted, info)
    everywhere(same_bits(theta, solver.theta) and solver.radius == radius / 2 and info.status is Status.RUNNING, solver.radius)


def test_wall_time_of_rank_0_stops_all_in_the_same_iteration() -> None:
    ours = train(network(), *task(), config=settings(stop={"epochs": 0, "wall_time": 0.1}), comm=COMM)
    everywhere(ours.status is Status.WALL_TIME, ours.status)
    everywhere(len(set(WORLD.allgather(len(ours.steps)))) == 1, len(ours.steps))


# Refused before training, on all ranks with the same words.


@pytest.mark.fault(26)
def test_missing_shard_on_one_rank_stops_all(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank and path are named within 5 s. Each rank has a copy of the data set of its own, as on local disks."""
    mine = folder / str(RANK)
    mine.mkdir()
    shards(mine, samples=40 * SIZE, count=SIZE)
    monkeypatch.chdir(mine)
    lost = f"train-{VICTIM:05d}-of-{SIZE:05d}.h5"
    if RANK == VICTIM:
        (mine / "set" / lost).unlink()
    config = settings(data={"path": "set"}, run={"dir": str(folder / "run")})
    WORLD.Barrier()
    began = time.monotonic()
    with refused_everywhere(SetupError, *([f"rank {VICTIM} on "] if SIZE > 1 else []), f"set/{lost}"):
        run_training(config, COMM)
    everywhere(time.monotonic() - began < 5)
    everywhere(not (folder / "run").exists())


@pytest.mark.fault(34)
@pytest.mark.skipif(SIZE == 1, reason="needs another rank")
def test_data_that_differs_on_one_rank(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by the fingerprint of the manifest before anything is trained."""
    mine = folder / str(RANK)
    mine.mkdir()
    shards(mine, samples=60 + (RANK == VICTIM))
    monkeypatch.chdir(mine)
    with refused_everywhere(HandshakeError, "data differs between the ranks", f"rank {VICTIM} on "):
        run_training(settings(data={"path": "set"}, run={"dir": str(folder / "run")}), COMM)


@pytest.mark.fault(49)
@pytest.mark.skipif(SIZE == 1, reason="needs another rank")
@pytest.mark.parametrize("what", ["seed", "device", "inputs", "test", "no test"])
def test_arguments_that_differ_on_one_rank(what: str) -> None:
    """In library use, where nothing is parsed by one rank for all."""
    odd = RANK == VICTIM
    config = settings(run={"seed": 7} if odd and what == "seed" else {"device": "auto"} if odd and what == "device" else {})
    (x, y), test = task(), task(50, seed=5)
    if odd and what == "inputs":
        x[3, 3] += 1
    if odd and what == "test":
        test = task(50, seed=6)
    wrong = "settings" if what in ("seed", "device") else "data"
    with refused_everywhere(HandshakeError, f"{wrong} differs between the ranks", f"rank {VICTIM} on "):
        train(network(), x, y, test=None if odd and what == "no test" else test, config=config, comm=COMM)


@pytest.mark.fault(21)
@pytest.mark.fault(49)
@pytest.mark.skipif(SIZE == 1, reason="needs another rank")
@pytest.mark.parametrize("name", ["0.weight", "mask"])
def test_frozen_parts_that_differ_on_one_rank(name: str) -> None:
    model = network()
    model[0].weight.requires_grad_(False)
    model.register_buffer("mask", torch.ones(2))
    if RANK == VICTIM:
        with torch.no_grad():
            model.state_dict()[name].add_(1)
    with refused_everywhere(HandshakeError, "frozen parameters and buffers differs between the ranks", f"rank {VICTIM} on "):
        train(model, *task(), config=settings(), comm=COMM)


@pytest.mark.fault(21)
@pytest.mark.fault(49)
@pytest.mark.skipif(SIZE == 1, reason="needs another rank")
@pytest.mark.parametrize("frozen", [False, True])
def test_layout_that_differs_on_one_rank(frozen: bool) -> None:
    """Other widths, or a parameter frozen here and not there."""
    model = network(hidden=8 if frozen or RANK != VICTIM else 9)
    if frozen and RANK == VICTIM:
        model[0].bias.requires_grad_(False)
    with refused_everywhere(HandshakeError, "layout of the parameters differs between the ranks", f"rank {VICTIM} on "):
        train(model, *task(), config=settings(), comm=COMM)


@pytest.mark.fault(4)
def test_inputs_not_finite_on_one_rank_are_found_at_the_start() -> None:
    """The rank is named."""
    x, y = task()
    row = 240 * (VICTIM + 1) // SIZE - 1  # the last of its block
    x[row, 2] = math.nan
    words = f"training sample {row} holds nan or inf in its inputs"
    with refused_everywhere(SetupError, words, *([f"rank {VICTIM} on "] if SIZE > 1 else [])):
        train(network(), x, y, config=settings(data={"overlap": 0.0}), comm=COMM)


@pytest.mark.fault(4)
def test_parameter_not_finite_is_named() -> None:
    """Rank 0's parameters are everybody's."""
    model = network()
    if RANK == 0:
        with torch.no_grad():
            model[2].weight[0, 0] = math.nan
    with refused_everywhere(SetupError, "parameter 2.weight holds nan or inf at the start"):
        train(model, *task(), config=settings(), comm=COMM)


def test_parameters_of_rank_0_are_everybodys() -> None:
    ours = train(network(seed=RANK), *task(), config=settings(stop={"iterations": 1}), comm=COMM)
    serial = train(network(seed=0), *task(), config=settings(stop={"iterations": 1}), comm=SerialCommunicator())
    everywhere(ours.steps[0].loss == pytest.approx(serial.steps[0].loss, rel=1e-6), ours.steps[0].loss)


@pytest.mark.fault(27)
@pytest.mark.parametrize(("subdomains", "samples", "words"), [
    (13, 12, "13 subdomains need at least as many samples, the data set has 12"),
    (SIZE - 1, 12, f"{SIZE} ranks share {SIZE - 1} subdomains; use at least one subdomain per rank"),
])  # fmt: skip
def test_counts_that_do_not_fit_are_refused(subdomains: int, samples: int, words: str) -> None:
    if subdomains == 0:
        pytest.skip("0 stands for one per rank")
    x, y = task(samples)
    with refused_everywhere(SetupError, words):
        train(network(), x, y, config=settings(solver={"subdomains": subdomains}), comm=COMM)


def test_one_run_directory_for_all_ranks(folder: Path) -> None:
    if RANK == 0:
        shards(folder, samples=160, count=3)
    WORLD.Barrier()
    config = settings(data={"path": str(folder / "set")}, run={"dir": str(folder / "run")}, solver={"subdomains": 4}, stop={"epochs": 2})
    result = run_training(config, COMM)
    WORLD.Barrier()
    stored = read_run(folder / "run")
    values = torch.cat([torch.from_numpy(value).view(-1) for value in read_parameters(folder / "run").values()])
    everywhere(same_bits(values, result.theta) and result.directory == str(folder / "run"))
    everywhere(stored.completion is not None and (stored.completion.ranks, stored.completion.subdomains) == (SIZE, 4))
    everywhere(len(stored.provenance["hosts"]) == SIZE and stored.columns["loss"].tolist() == [info.loss for info in result.steps])
    everywhere(json.loads((folder / "run" / "completion.json").read_text())["bytes"] == WORLD.bcast(stored.completion.bytes))


def test_rank_0_alone_reads_where_the_run_comes_from_and_tells_all_if_it_cannot(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand ranks that read every source file and ask git would be a storm on the file system."""
    asked: list[str] = []

    def unreadable(**known: object) -> None:
        asked.append("")
        raise OSError("stale file handle")

    monkeypatch.setattr("apts_mpi.provenance.collect", unreadable)
    with refused_everywhere(SetupError, "stale file handle"):
        train(network(), *task(), config=settings(run={"dir": str(folder / "run")}), comm=COMM)
    everywhere(len(asked) == (RANK == 0), asked)


def test_ranks_with_other_arithmetic_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rank computes the global step for itself, so threads and instruction set must be the same."""
    x, y = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 2
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: f"AVX{RANK}")
    if SIZE == 1:
        train(nn.Linear(3, 2), x, y, comm=MpiCommunicator(WORLD), stop={"epochs": 1}, run={"monitor": "none"})
        return
    with refused_everywhere(HandshakeError, "arithmetic differs between the ranks"):
        train(nn.Linear(3, 2), x, y, comm=MpiCommunicator(WORLD), stop={"epochs": 1}, run={"monitor": "none"})
