"""The baselines at 1, 2, 3 and 4 ranks: the same bits on any number of them, sums that overlap, messages and bytes."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mpi4py import MPI

sys.path.append(str(Path(__file__).parents[1] / "solver"))
from baseline_cases import settings, stepper

from apts_mpi.contracts import Flag
from apts_mpi.parallel.comm import MpiCommunicator
from apts_mpi.parallel.handshake import SetupError
from apts_mpi.parallel.message import LANE
from apts_mpi.parallel.serial import SerialCommunicator
from apts_mpi.partition import tree_sum
from apts_mpi.problem.flat import FlatModel
from apts_mpi.problem.watch import Watch, ranges
from apts_mpi.solver.exchange import SCALARS
from apts_mpi.train import train

pytestmark = pytest.mark.mpi

WORLD = MPI.COMM_WORLD.Dup()
RANK, SIZE = WORLD.Get_rank(), WORLD.Get_size()
CPU = torch.device("cpu")
N_PARAMS, TAIL = 39, LANE * len(SCALARS) + len(Flag)  # entries of the small network, and what travels behind them


def everywhere(good: object, what: object = "") -> None:
    """Fail on every rank, naming those where ``good`` is false."""
    bad = [rank for rank, fine in enumerate(WORLD.allgather(bool(good))) if not fine]
    assert not bad, f"wrong on rank {bad}; here: {what}"


def values(rank: int, length: int, dtype: torch.dtype) -> torch.Tensor:
    random = np.random.default_rng([rank, length])
    return torch.from_numpy(random.standard_normal(length) * np.exp2(random.integers(-12, 13, length))).to(dtype)


@pytest.mark.parametrize(("method", "keys"), [
    ("sgd", {"nesterov": True}), ("sgd", {"overlap": True, "bucket": 40}), ("adam", {}), ("adamw", {"weight_decay": 0.1}),
    ("adam", {"overlap": True, "bucket": 1}), ("local-sgd", {"period": 2}), ("trust-region", {}),
])  # fmt: skip
def test_any_number_of_ranks_gives_the_bits_of_one(method: str, keys: dict[str, object]) -> None:
    subdomains = 6 if SIZE == 3 else 4
    config = settings(method, subdomains, baseline={"lr": 0.05, "schedule": "cosine", **keys})
    ours, _, orders = stepper(config, comm=MpiCommunicator(WORLD), dtype=torch.float32)
    alone, _, _ = stepper(config, comm=SerialCommunicator(), dtype=torch.float32)
    for k in range(6):
        epoch, batch = (k // 3, k % 3) if method != "local-sgd" else (k // 2, k % 2)
        one, other = ours.step(epoch, batch), alone.step(epoch, batch)
        everywhere(len(set(WORLD.allgather(repr(one)))) == 1, one)
        if SIZE == 3:  # not the groups of the tree
            everywhere(torch.allclose(ours.theta, alone.theta, rtol=1e-4, atol=1e-5), k)
        else:
            everywhere(torch.equal(ours.theta, alone.theta) and repr(one) == repr(other), (one, other))


@pytest.mark.parametrize("reduction", ["auto", "tree", "mpi"])
@pytest.mark.parametrize("limit", [5, 2**30])
def test_overlap_gives_the_bits_of_the_blocking_sum(reduction: str, limit: int) -> None:
    thetas = []
    for keys in ({}, {"overlap": True, "bucket": 1}, {"overlap": True, "bucket": 10**6}):
        config = settings("sgd", SIZE, baseline={"lr": 0.1, **keys})
        solver, _, _ = stepper(config, comm=MpiCommunicator(WORLD, reduction, limit), dtype=torch.float32)
        for k in range(6):
            solver.step(k // 3, k % 3)
        thetas.append(solver.theta)
    exact = reduction != "mpi" or SIZE <= 2
    everywhere(all(torch.equal(theta, thetas[0]) if exact else torch.allclose(theta, thetas[0], rtol=1e-4, atol=1e-5) for theta in thetas))
    everywhere(WORLD.bcast(thetas[1].numpy().tobytes()) == thetas[1].numpy().tobytes())


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("method", ["sgd", "adam", "local-sgd"])
def test_messages_and_bytes_are_exact(method: str, overlap: bool) -> None:
    comm = MpiCommunicator(WORLD)
    keys = {"overlap": overlap and method != "local-sgd", "bucket": 1, "period": 3}
    solver, _, _ = stepper(settings(method, 2 * SIZE, baseline=keys), comm=comm, dtype=torch.float32)
    sent = comm.bytes
    for k in range(5):
        solver.step(0, 0)
        everywhere((comm.large, comm.small) == (k + 1, 0), (comm.large, comm.small))
        everywhere(comm.bytes - sent == (k + 1) * (4 * (N_PARAMS + TAIL) if SIZE > 1 else 0), comm.bytes - sent)


@pytest.mark.parametrize("reduction", ["auto", "tree", "mpi"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("length", [1, 3, 1000])
def test_parts_of_a_message_while_others_are_under_way(reduction: str, dtype: torch.dtype, length: int) -> None:
    comm = MpiCommunicator(WORLD, reduction, count_limit=300)
    message = comm.plan(length, dtype, CPU, ["loss"])
    cuts = sorted({0, length // 3, length // 2, length})
    for turn in range(3):
        message.vector.copy_(values(RANK + turn, length, dtype))
        for start, stop in reversed(list(zip(cuts, cuts[1:], strict=False))):
            comm.start_sum(message, start, stop)
        message.put("loss", [float(RANK)])
        if RANK == SIZE - 1:
            message.raise_flag(Flag.STOP)
        comm.finish_sum(message)
        twin = tree_sum([values(rank + turn, length, dtype) for rank in range(SIZE)], torch.add)
        exact = reduction != "mpi" or SIZE <= 2
        everywhere(torch.equal(message.vector, twin) if exact else torch.allclose(message.vector, twin, rtol=1e-4, atol=1e-2))
        everywhere(message.get("loss") == SIZE * (SIZE - 1) / 2 and message.count(Flag.STOP) == 1)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("reduction", ["tree", "mpi"])
def test_what_is_not_finite_is_summed_without_a_word(reduction: str) -> None:
    comm = MpiCommunicator(WORLD, reduction)
    message = comm.plan(3 * SIZE, torch.float32, CPU, [])
    message.vector.fill_(math.inf if RANK % 2 else -math.inf)
    comm.start_sum(message, 0, 3 * SIZE)
    comm.finish_sum(message)
    everywhere((torch.isnan if SIZE > 1 else torch.isinf)(message.vector).all())


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (2, 2), (3, 6)])
def test_parts_outside_the_vector_are_refused(start: int, stop: int) -> None:
    for comm in (MpiCommunicator(WORLD), SerialCommunicator()):
        message = comm.plan(5, torch.float32, CPU, [])
        with pytest.raises(ValueError, match=f"a part of the 5 entries, got {start}..{stop}"):
            comm.start_sum(message, start, stop)


def test_hooks_in_another_order_on_every_rank_meet_in_the_same_sums() -> None:
    """The ranges wait for their turn, so no rank's sum meets another's."""
    torch.manual_seed(0)
    flat = FlatModel(torch.nn.Sequential(*(torch.nn.Linear(3, 3) for _ in range(4))), torch.float32, CPU)
    told: list[tuple[int, int]] = []
    watch = Watch(flat, 1, lambda start, stop: told.append((start, stop)))
    for slot in np.random.default_rng(RANK).permutation(len(flat.slots) - 1):  # one hook never comes
        watch._arrived(int(slot))
    watch.finish()
    everywhere(told == [(part.start, part.stop) for part in ranges(flat.slots, 1)] == [(36, 48), (24, 36), (12, 24), (0, 12)], told)


def test_a_run_stops_together_when_a_period_has_more_minibatches_than_an_epoch() -> None:
    x, y = torch.randn(64, 3, generator=torch.Generator().manual_seed(0)), torch.arange(64) % 2
    config = settings("local-sgd", SIZE, data={"batch": 16}, baseline={"period": 9}, run={"monitor": "none", "device": "cpu"})
    refused = ""
    try:
        train(torch.nn.Linear(3, 2), x, y, config=config, comm=MpiCommunicator(WORLD))
    except SetupError as error:
        refused = str(error)
    everywhere("baseline.period = 9 is more than the 4 minibatches of an epoch" in refused, refused)


@pytest.mark.parametrize("method", ["sgd", "local-sgd"])
def test_a_second_run_on_the_same_communicator_equals_the_first(method: str) -> None:
    x, y = torch.randn(64, 3, generator=torch.Generator().manual_seed(0)), torch.arange(64) % 2
    keys = {"run": {"monitor": "none", "device": "cpu"}, "data": {"batch": 16}, "stop": {"epochs": 2}, "baseline": {"period": 2}}
    comm = MpiCommunicator(WORLD)
    results = []
    for _ in range(2):
        torch.manual_seed(0)
        results.append(train(torch.nn.Linear(3, 2), x, y, config=settings(method, SIZE, **keys), comm=comm))
    steps = 8 if method == "sgd" else 4
    everywhere(all(len(result.steps) == steps and result.reductions == steps for result in results))
    everywhere(math.isfinite(results[0].loss) and torch.equal(results[0].theta, results[1].theta))
