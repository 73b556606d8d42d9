"""Checkpoints at 1, 2, 3 and 4 ranks: on another number of ranks, asked for by one rank, and theta that drifts apart."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from mpi4py import MPI

sys.path.append(str(Path(__file__).parents[1] / "train"))
from train_cases import network, settings, task

from apts_mpi import Result, Status, train
from apts_mpi.parallel.comm import MpiCommunicator
from apts_mpi.parallel.handshake import HandshakeError
from apts_mpi.parallel.serial import SerialCommunicator
from apts_mpi.rundir import read_run
from apts_mpi.solver.apts import APTS
from apts_mpi.solver.average import Averaged

pytestmark = pytest.mark.mpi

WORLD = MPI.COMM_WORLD.Dup()
RANK, SIZE = WORLD.Get_rank(), WORLD.Get_size()
COMM = MpiCommunicator(WORLD)
SUBDOMAINS = 6


def everywhere(good: object, what: object = "") -> None:
    """Fail on every rank, naming those where ``good`` is false."""
    bad = [rank for rank, fine in enumerate(WORLD.allgather(bool(good))) if not fine]
    assert not bad, f"wrong on rank {bad}; here: {what}"


@contextmanager
def first_ranks(count: int) -> Iterator[MpiCommunicator | None]:
    """A communicator of ranks 0..count-1; None on the others, who wait."""
    part = WORLD.Split(0 if RANK < count else MPI.UNDEFINED, RANK)
    try:
        yield MpiCommunicator(part) if part != MPI.COMM_NULL else None
    finally:
        if part != MPI.COMM_NULL:
            part.Free()
        WORLD.Barrier()


def run(ranks: Any, folder: str, iterations: int, module: Any = None, **sections: Any) -> Result:
    sections = {"solver": {"subdomains": SUBDOMAINS}, "checkpoint": {"every": "2"}, "data": {"batch": 120}, **sections}
    sections["run"] = {"dir": folder, **sections.get("run", {})}
    config = settings(stop={"epochs": 0, "iterations": iterations}, **sections)
    return train(module or network(), *task(), test=task(samples=50, seed=9), config=config, comm=ranks)


def shared_folder(tmp_path: Path) -> str:
    return str(WORLD.bcast(str(tmp_path / "run")))


@pytest.mark.fault(62)
@pytest.mark.parametrize("method", ["apts", "local-sgd"])
def test_on_other_numbers_of_ranks(tmp_path: Path, method: str) -> None:
    """All ranks, one, the others: N = 6 stays, and so does the trajectory; bitwise where the sums take the same tree."""
    folder, keys = shared_folder(tmp_path), {"method": method, "comm": {"reduction": "tree"}, "baseline": {"period": 2}}
    whole = run(SerialCommunicator(), "", 9, **keys)
    seen: list[Result] = []
    for iterations, count in ((3, SIZE), (5, 1), (7, max(1, SIZE - 1)), (9, SIZE)):
        with first_ranks(count) as comm:
            if comm is not None:
                seen.append(run(comm, folder, iterations, **keys, run={"resume": "auto"}))
    last = seen[-1]
    everywhere(len(last.steps) == 9 and last.status is Status.ITERATIONS)
    close = torch.allclose(last.theta, whole.theta, rtol=0, atol=2e-4)
    everywhere(close, (last.theta - whole.theta).abs().max())
    everywhere(RANK or len(read_run(folder).columns["loss"]) == 9)


@pytest.mark.fault(62)
def test_the_same_bits_where_the_tree_is_the_same(tmp_path: Path) -> None:
    """Eight subdomains on a power of two of ranks: stopped there, gone on with on one rank, the bits of one unbroken run."""
    folder, count = shared_folder(tmp_path), 4 if SIZE >= 4 else 2 if SIZE >= 2 else 1
    keys: dict[str, Any] = {"solver": {"subdomains": 8}, "comm": {"reduction": "tree"}}
    whole = run(SerialCommunicator(), "", 8, **keys)
    for iterations, ranks in ((3, count), (5, 1), (8, max(1, count // 2))):
        with first_ranks(ranks) as comm:
            if comm is not None:
                result = run(comm, folder, iterations, **keys, run={"resume": "auto"})
    everywhere(max(1, count // 2) <= RANK or torch.equal(result.theta, whole.theta))


@pytest.mark.fault(45)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_one_rank_stops_all_after_the_iteration(tmp_path: Path, number: int) -> None:
    folder, last = shared_folder(tmp_path), SIZE - 1

    class Signalling(torch.nn.Module):
        """The last rank gets the signal in the middle of an evaluation."""

        def __init__(self, when: int) -> None:
            super().__init__()
            self.inner, self.calls, self.when = network(), 0, when

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            if self.calls == self.when and last == RANK:
                os.kill(os.getpid(), number)
            return self.inner(x)

    whole = run(COMM, "", 12, module=Signalling(-1))
    first = run(COMM, folder, 12, module=Signalling(100))
    everywhere(first.status is Status.INTERRUPTED and first.exit_code == 75 and 0 < len(first.steps) < 12, (first.status, len(first.steps)))
    everywhere(len({len(steps) for steps in WORLD.allgather(first.steps)}) == 1)
    everywhere(RANK or read_run(folder).completion is None)
    second = run(COMM, folder, 12, module=Signalling(-1), run={"resume": "must"})
    everywhere(torch.equal(second.theta, whole.theta))


class Flipped(APTS):
    """On one rank a bit of theta turns over before iteration ``at``."""

    at = 5

    def step(self, epoch: int = 0, batch: int = 0) -> Any:
        if self._k == self.at and RANK == SIZE - 1:
            self.theta.numpy().view("u1")[4 * 3 + 2] ^= 1 << 5
        return super().step(epoch, batch)


class FlippedMean(Averaged):
    """The same with a bit of the mean of the iterates, which the method itself never sees."""

    def step(self, epoch: int = 0, batch: int = 0) -> Any:
        if self._count == Flipped.at and RANK == SIZE - 1:
            self.mean.numpy().view("u1")[4 * 3 + 2] ^= 1 << 5
        return super().step(epoch, batch)


@pytest.mark.fault(57)
@pytest.mark.skipif(SIZE < 2, reason="one rank agrees with itself")
@pytest.mark.parametrize("heal", [False, True])
@pytest.mark.parametrize("mean", [False, True])
def test_a_flipped_bit_is_found_within_the_interval(tmp_path: Path, mean: bool, heal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if mean:
        monkeypatch.setattr("apts_mpi.solver.average.Averaged", FlippedMean)
    else:
        monkeypatch.setattr("apts_mpi.solver.apts.APTS", Flipped)
    folder, words, result = shared_folder(tmp_path), "", None
    keys: dict[str, Any] = {"safety": {"verify": 4, "on_difference": "heal" if heal else "halt"}, "checkpoint": {"every": "off"}}
    keys["solver"] = {"subdomains": SUBDOMAINS, "average": 2 * mean}
    try:
        result = run(COMM, folder, 12, **keys)
    except HandshakeError as error:
        words = str(error)
    if SIZE == 2:
        everywhere("after iteration 8 theta differs between the ranks and no majority agrees" in words, words)
    elif not heal:
        everywhere(f"after iteration 8 theta of rank {SIZE - 1} on " in words and f"not that of the {SIZE - 1} others" in words, words)
    else:
        everywhere(result is not None and result.status is Status.ITERATIONS and not words, words)
        assert result is not None
        everywhere(len({theta.tobytes() for theta in WORLD.allgather(result.theta.numpy())}) == 1)
