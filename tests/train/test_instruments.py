"""What a run writes down about its time, what an emulated network changes, and what measuring costs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from time import thread_time_ns
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import nn
from train_cases import network, settings, task

from apts_mpi import Result, train
from apts_mpi.parallel.serial import SerialCommunicator
from apts_mpi.rundir import read_run
from apts_mpi.study import plots, tables
from apts_mpi.timing import Timers, split

EMULATED = {"emulate_latency": 2e-3, "emulate_bandwidth": 1e8, "emulate_ranks": 4}
MARK = "emulated network: 2000 us, 0.1 GB/s, P = 4"


def run(folder: Path, **sections: dict[str, Any]) -> Result:
    config = settings(**{"stop": {"iterations": 4, "epochs": 0}, **sections, "run": {"dir": str(folder), **sections.get("run", {})}})
    return train(network(), *task(), config=config, comm=SerialCommunicator())


def test_every_iteration_of_every_rank_is_on_record(tmp_path: Path) -> None:
    run(tmp_path / "run")
    found = read_run(tmp_path / "run")
    with h5py.File(tmp_path / "run" / "records.h5") as file:
        laps = {name: entry[()] for name, entry in file["timing/laps"].items() if name not in ("iteration", "rank")}
        totals = {name: file["timing/run"][name][()] for name in laps}
    assert {"local solve", "evaluate", "model", "reduce", "accept"} <= set(laps) and "wait" not in laps
    for name, seconds in laps.items():
        assert seconds.shape == (4, 1) and seconds.dtype == np.float32
        if name not in ("io", "other"):  # what follows the last lap belongs to no iteration
            np.testing.assert_allclose(seconds.sum(axis=0), totals[name], rtol=1e-5)
        np.testing.assert_allclose(seconds[:, 0], found.columns[f"seconds_{name.replace(' ', '_')}"], rtol=1e-6)


def test_flops_and_peak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("apts_mpi.problem.flops.SECONDS", 0.02)
    run(tmp_path / "run", run={"peak": True})
    facts = json.loads((tmp_path / "run" / "provenance.json").read_text())
    forward = 2 * (6 * 8 + 8 * 3)
    assert facts["flops_per_value"] == forward and facts["flops_per_gradient"] == 2 * forward + 2 * 8 * 3
    assert facts["peak_flops"] > 1e6
    shown = "\n".join(tables.result(read_run(tmp_path / "run")))
    assert "GFLOP/s per rank while evaluating" in shown and "% of the measured" in shown
    run(tmp_path / "plain")
    assert "of the measured" not in "\n".join(tables.result(read_run(tmp_path / "plain")))


def test_an_emulated_network_costs_time_alone_and_is_marked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    real = run(tmp_path / "real")
    slow = run(tmp_path / "slow", comm=EMULATED, run={"monitor": "plain"})
    assert torch.equal(real.theta, slow.theta)
    assert MARK in capsys.readouterr().out
    found, plain = read_run(tmp_path / "slow"), read_run(tmp_path / "real")
    sums = next(line for line in found.times if line.phase == "run" and line.region == "reduce")
    assert sums.mean >= sums.calls * 2 * 2e-3  # two latencies in a row at P = 4
    assert found.provenance["emulated_network"] == MARK and plain.provenance["emulated_network"] == ""
    assert any(MARK in line for line in tables.provenance(found.provenance))
    assert plots.labels([found, plain]) == [f"slow, apts lsr1 ({MARK})", "real, apts lsr1"]


def test_waiting_is_told_from_sending_only_when_asked(tmp_path: Path) -> None:
    real, waited = run(tmp_path / "a"), run(tmp_path / "b", run={"measure_wait": True})
    assert torch.equal(real.theta, waited.theta)
    calls = {line.region: line.calls for line in read_run(tmp_path / "b").times if line.phase == "run"}
    assert calls["wait"] == calls["reduce"] > 0
    assert "wait" not in {line.region for line in read_run(tmp_path / "a").times}


@pytest.fixture
def untraced() -> Iterator[None]:
    """No coverage measurement meanwhile: it costs more than a region."""
    tracer = sys.gettrace()
    sys.settrace(None)
    yield
    sys.settrace(tracer)


def test_measuring_costs_at_most_one_per_cent(untraced: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted, not compared: regions and laps of an iteration times what one costs, against the iteration's CPU time."""
    seen: list[Timers] = []
    begin = Timers.__init__

    def on_cpu_time(self: Timers, *args: Any, **keys: Any) -> None:  # others use this machine too
        begin(self, *args, **{**keys, "clock": thread_time_ns})
        seen.append(self)

    with monkeypatch.context() as patch:
        patch.setattr(Timers, "__init__", on_cpu_time)
        x, y = torch.randn(1000, 64), torch.randint(10, (1000,))
        module = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10))
        config = settings(stop={"iterations": 10, "epochs": 0}, run={"threads": 1})
        train(module, x, y, config=config, comm=SerialCommunicator())
    timers = seen[0]
    regions = sum(cell["calls"] for cell in split(timers.row())["run"].values())
    fresh = Timers()

    def cost(count: int = 2_000) -> float:
        start = thread_time_ns()
        for _ in range(count):
            with fresh("model"):
                pass
        region = (thread_time_ns() - start) / count
        start = thread_time_ns()
        for _ in range(200):
            fresh.lap()
        return regions * region + 10 * (thread_time_ns() - start) / 200

    share = min(cost() for _ in range(5)) * 1e-9 / sum(cell["seconds"] for cell in split(timers.row())["run"].values())
    print(f"{regions / 10:.0f} regions an iteration, {100 * share:.2f} % of its time")
    assert regions >= 10 * 10
    assert share <= 0.01
