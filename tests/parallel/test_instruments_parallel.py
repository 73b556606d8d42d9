"""Wrapped communicators, laps of all ranks and benchmarks at 1, 2, 3 and 4 ranks."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep

import h5py
import numpy as np
import pytest
import torch
from mpi4py import MPI

sys.path.append(str(Path(__file__).parents[1] / "train"))
from train_cases import network, settings, task

from apts_mpi import train
from apts_mpi.bench import measure, reduce, report, step
from apts_mpi.contracts import Communicator
from apts_mpi.network import Network
from apts_mpi.parallel.comm import MpiCommunicator
from apts_mpi.parallel.emulate import EmulatedCommunicator
from apts_mpi.parallel.raw import raw_sum
from apts_mpi.parallel.serial import SerialCommunicator
from apts_mpi.parallel.wrapper import WaitingCommunicator, WrappedCommunicator

pytestmark = pytest.mark.mpi

WORLD = MPI.COMM_WORLD.Dup()
RANK, SIZE = WORLD.Get_rank(), WORLD.Get_size()
CPU = torch.device("cpu")


def everywhere(good: object, what: object = "") -> None:
    """Fail on every rank, naming those where ``good`` is false."""
    bad = [rank for rank, fine in enumerate(WORLD.allgather(bool(good))) if not fine]
    assert not bad, f"wrong on rank {bad}; here: {what}"


def summed(comm: Communicator, overlapped: bool) -> tuple[torch.Tensor, float]:
    """The sum of one message, and how long it took."""
    message = comm.plan(1000, torch.float32, CPU, ["loss"])
    message.vector.copy_(torch.from_numpy(np.random.default_rng(RANK).standard_normal(1000)))
    message.put("loss", [0.1])
    comm.barrier()
    start = monotonic()
    if overlapped:
        comm.start_sum(message, 500, 1000)
        comm.start_sum(message, 0, 500)
        comm.finish_sum(message)
    else:
        comm.sum_(message)
    seconds = monotonic() - start
    assert message.get("loss") == pytest.approx(0.1 * SIZE)
    return message.vector.clone(), seconds


@pytest.mark.parametrize("overlapped", [False, True])
def test_an_emulated_sum_has_the_same_bits_and_the_models_time(overlapped: bool) -> None:
    real, slow = MpiCommunicator(WORLD), MpiCommunicator(WORLD)
    emulated = EmulatedCommunicator(slow, Network(5e-3, 0.0, 4))
    expected, _ = summed(real, overlapped)
    found, seconds = summed(emulated, overlapped)
    everywhere(torch.equal(expected, found))
    everywhere((emulated.messages, emulated.bytes) == (real.messages, real.bytes))
    everywhere(seconds >= 2 * 5e-3, seconds)


def test_overlap_is_honoured() -> None:
    comm = EmulatedCommunicator(MpiCommunicator(WORLD), Network(20e-3, 0.0, 2))
    message = comm.plan(100, torch.float32, CPU, [])

    def once() -> float:
        comm.barrier()
        start = monotonic()
        comm.start_sum(message, 0, 100)
        sleep(0.06)  # computing
        comm.finish_sum(message)
        return monotonic() - start

    seconds = min(once() for _ in range(5))  # others use this machine too
    everywhere(seconds >= 0.08)  # 60 ms of computing, then scalars and flags
    everywhere(seconds < 0.1 or SIZE > 2, seconds)  # not 60 + 40


def test_waiting_is_timed_apart() -> None:
    seen: list[str] = []

    @contextmanager
    def timers(region: str) -> Iterator[None]:
        seen.append(region)
        yield

    comm = WaitingCommunicator(MpiCommunicator(WORLD), timers)  # type: ignore[arg-type]
    summed(comm, overlapped=False)
    summed(comm, overlapped=True)  # no barrier: it would end the overlap
    everywhere(seen == ["wait"], seen)


def test_every_verb_goes_through() -> None:
    inner = MpiCommunicator(WORLD)
    comm = WrappedCommunicator(inner)
    everywhere(all(getattr(comm, name) == getattr(inner, name) for name in ("rank", "size", "host", "local_rank", "library")))
    comm.configure("tree", 100)
    everywhere((inner.reduction, inner.count_limit) == ("tree", 100))
    vector = torch.full((3,), float(RANK))
    comm.broadcast_(vector)
    everywhere(vector.sum() == 0)
    everywhere(comm.share(f"from {RANK}") == "from 0")
    everywhere(comm.gather([float(RANK)]) == [[float(rank)] for rank in range(SIZE)])
    everywhere(comm.gather_text(str(RANK)) == [str(rank) for rank in range(SIZE)])
    comm.agree("nothing", "same")
    rows = comm.collect(np.array([RANK, 0.1], np.float32))
    everywhere(rows is None if RANK else np.array_equal(rows, [[rank, np.float32(0.1)] for rank in range(SIZE)]))
    empty = comm.collect(np.empty(0, np.float32))
    everywhere(empty is None if RANK else [len(row) for row in empty] == [0] * SIZE)
    rows = comm.collect(np.full(RANK + 1, 1 / 3))
    everywhere(rows is None if RANK else [row.tolist() for row in rows] == [[1 / 3] * (rank + 1) for rank in range(SIZE)])
    comm.configure("tree", 3 * SIZE)  # elements in one call: three of each rank
    rows = comm.collect(np.arange(7 + RANK, dtype=np.uint8))
    everywhere(rows is None if RANK else [row.tolist() for row in rows] == [list(range(7 + rank)) for rank in range(SIZE)])
    comm.configure("tree", 100)
    last = SIZE - 1
    everywhere(comm.share(f"from {RANK}", last) == f"from {last}")
    vector.fill_(RANK)
    comm.broadcast_(vector, last)
    everywhere(vector.tolist() == [last] * 3)


def test_laps_of_all_ranks_are_on_record(tmp_path: Path) -> None:
    folder = WORLD.bcast(str(tmp_path / "run"))
    config = settings(stop={"iterations": 3, "epochs": 0}, run={"dir": folder, "measure_wait": True})
    train(network(), *task(), config=config, comm=MpiCommunicator(WORLD))
    good = True
    if RANK == 0:
        with h5py.File(f"{folder}/records.h5") as file:
            laps = {name: entry[()] for name, entry in file["timing/laps"].items() if name not in ("iteration", "rank")}
            totals = {name: file["timing/run"][name][()] for name in laps}
        good = {"wait", "reduce", "local solve"} <= set(laps) and all(entry.shape == (3, SIZE) for entry in laps.values())
        good = good and np.allclose(laps["local solve"].sum(axis=0), totals["local solve"], rtol=1e-5)
    everywhere(good)


def test_an_emulated_run_ends_at_the_same_parameters() -> None:
    x, y = task()
    found = []
    for extra in ({}, {"emulate_latency": 1e-4, "emulate_bandwidth": 1e9}):
        config = settings(stop={"iterations": 3, "epochs": 0}, comm=extra)
        found.append(train(network(), x, y, config=config, comm=MpiCommunicator(WORLD)).theta)
    everywhere(torch.equal(*found))


def test_raw_sums_are_bare() -> None:
    if SIZE == 1:
        raw_sum(SerialCommunicator(), np.zeros(5, np.float32))()
    comm = MpiCommunicator(WORLD)
    raw_sum(comm, np.zeros(5, np.float32))()
    everywhere(comm.messages == 0)
    with pytest.raises(TypeError, match="launch.start"):
        raw_sum(WrappedCommunicator(comm), np.zeros(5, np.float32))


def test_benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reduce, "BLOCK", 1e-5)
    comm, plan = MpiCommunicator(WORLD), measure.Plan(15, 1)
    if SIZE == 1:
        with pytest.raises(ValueError, match="at least 2 ranks"):
            reduce.measure(comm, 64, plan)
    else:
        found = reduce.measure(comm, 64, plan)
        everywhere([entry["bytes"] for entry in found["results"]] == [16, 64], found)
        everywhere(all(entry["ratio"]["median"] > 0 for entry in found["results"]) and found["reduction"])
    stepped = step.measure(comm, settings(model={"widths": (4,)}, local={"iters": 2}), (1, 6, 6), 20, plan)
    everywhere(stepped["reductions_per_iteration"] >= 3 and stepped["ratio"]["median"] > 0, stepped)
    crowded = report.oversubscribed(comm, 1, allowed=True)
    whole = report.document(comm, "step", {}, plan, 1, crowded, stepped)
    everywhere(json.loads(json.dumps(whole, allow_nan=False))["ranks"] == SIZE)
