"""Faults of whole runs in one process: labels that are none, classes that are absent, clocks that jump."""

from __future__ import annotations

import sys
import time
from datetime import datetime, timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from train_cases import CLASSES, network, settings, shards, task

from apts_mpi import Result, Status, run_training, train
from apts_mpi.parallel.handshake import SetupError
from apts_mpi.parallel.serial import SerialCommunicator
from apts_mpi.rundir import read_run


def train_here(*arguments: Any, **sections: Any) -> Result:
    return train(*arguments, config=settings(**sections), comm=SerialCommunicator())


@pytest.mark.parametrize("held", [torch.zeros(3, 4), (torch.zeros(3, 4),)])
def test_a_test_set_that_is_no_pair_is_refused(held: Any) -> None:
    with pytest.raises(SetupError, match=r"test must be a pair \(inputs, targets\), got "):
        train(network(), *task(), test=held, config=settings(), comm=SerialCommunicator())


@pytest.mark.fault(29)
def test_a_fractional_label_names_the_sample() -> None:
    x, y = task()
    labels = y.float()
    with pytest.raises(SetupError, match=r"set model.loss to mse, and if they are class labels they must be of an integer type$"):
        train_here(network(), x, labels)
    labels[150] = 1.5
    with pytest.raises(SetupError, match=r"must be of an integer type \(training sample 150 has 1.5\)"):
        train_here(network(), x, labels)


@pytest.mark.fault(30)
def test_an_absent_class_is_noted_and_allowed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """In what a person sees and in the provenance."""
    x, y = task()
    run = {"dir": str(tmp_path / "r"), "monitor": "plain"}
    result = train_here(network(outputs=CLASSES + 2), x, y, stop={"epochs": 2}, run=run)
    note = f"no training sample has one of 2 of the {CLASSES + 2} classes: {CLASSES}, {CLASSES + 1}"
    assert result.exit_code == 0 and read_run(tmp_path / "r").provenance["note"] == note
    assert note in capsys.readouterr().out
    assert "note" not in read_run(train_here(network(), x, y, stop={"epochs": 1}, run=run).directory).provenance


def noted(**sections: Any) -> list[str]:
    """The notes of a run on the little task."""
    x, y = task()
    result = train_here(network(), x, y, **sections)
    assert result.exit_code == 0 and result.directory is not None
    return [note for note in read_run(result.directory).provenance.get("note", "").split("; ") if note]


def test_a_method_of_many_steps_that_makes_one_an_epoch_says_so(tmp_path: Path) -> None:
    def found(method: str, batch: int) -> list[str]:
        run = {"dir": str(tmp_path / f"{method}-{batch}"), "threads": 1}
        return noted(method=method, data={"batch": batch}, stop={"epochs": 1}, run=run)

    whole = "makes one step an epoch"
    assert whole in found("sgd", 0)[0] and not found("sgd", 50) and not found("apts", 0)
    too_large, also = found("adam", 10**6)[0], found("apts", 10**6)
    assert too_large.startswith("data.batch = 1000000 is more than the ") and len(also) == 1 and also[0] == too_large


def test_more_threads_than_cores_are_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("apts_mpi.parallel.devices.affinity", lambda: [0])
    try:
        notes = noted(stop={"epochs": 1}, run={"dir": str(tmp_path / "r"), "threads": 2})
    finally:
        torch.set_num_threads(1)
    assert notes[0].startswith("1 ranks of 2 threads share the 1 cores of ") and notes[-1] == "--run.threads 1 leaves each thread a core"


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch sees a GPU here")
def test_gpus_that_torch_does_not_see_are_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "4")
    run = {"dir": str(tmp_path / "auto"), "threads": 1, "device": "auto"}
    assert noted(stop={"epochs": 1}, run=run)[0].startswith("Slurm gave this job GPUs (SLURM_GPUS_ON_NODE = 4), but torch ")
    assert not noted(stop={"epochs": 1}, run={**run, "dir": str(tmp_path / "cpu"), "device": "cpu"})


@pytest.mark.fault(19)
def test_statistics_that_run_in_a_layer_of_another_kind_are_refused() -> None:
    x, y = torch.randn(60, 2, 4, generator=torch.Generator().manual_seed(0)), torch.arange(60) % CLASSES
    layers = nn.InstanceNorm1d(2, track_running_stats=True), nn.Flatten(), nn.Linear(8, CLASSES)
    with pytest.raises(SetupError, match=r"buffer 0\.running_mean changes whenever the model is evaluated.*model\.eval\(\)"):
        train_here(nn.Sequential(*layers), x, y)
    assert train_here(nn.Sequential(*layers).eval(), x, y, stop={"epochs": 1}).exit_code == 0


@pytest.mark.fault(31)
@pytest.mark.parametrize(
    "change", [lambda x: x.astype(">f4"), lambda x: x.astype(complex), lambda x: x.astype(str), lambda x: x[..., None]]
)
def test_inputs_of_a_wrong_type_order_or_shape_are_refused(change: Any) -> None:
    x, y = task()
    with pytest.raises(SetupError) as caught:
        train_here(network(), change(x.numpy()), y)
    assert caught.value.usage and "\n" not in str(caught.value)


class Jumping(datetime):
    """A clock that is ten years ahead or behind, in turn."""

    jumps = 0

    @classmethod
    def now(cls, tz: Any = None) -> datetime:
        cls.jumps += 1
        return datetime.now(tz) + timedelta(days=3650 * (-1) ** cls.jumps)


def tell(monkeypatch: pytest.MonkeyPatch, clock: type[datetime]) -> None:
    """Give every module that asks for the date another ``clock``."""
    import_module("apts_mpi.storage.records")
    for name, module in list(sys.modules.items()):
        if name.startswith("apts_mpi.") and getattr(module, "datetime", None) is datetime:
            monkeypatch.setattr(module, "datetime", clock)


@pytest.fixture
def jumping(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks for the date is told another one each time."""
    true, calls = time.time, 0

    def jump() -> float:
        nonlocal calls
        calls += 1
        return true() + 3.15e8 * (-1) ** calls

    monkeypatch.setattr(time, "time", jump)
    tell(monkeypatch, Jumping)


@pytest.mark.fault(55)
def test_a_jumping_clock_changes_no_limit_no_timer_and_no_order(jumping: None, tmp_path: Path) -> None:
    began = time.monotonic()
    run = {"dir": str(tmp_path / "r"), "monitor": "plain"}
    result = train_here(network(), *task(), data={"batch": 60}, stop={"epochs": 0, "wall_time": 0.4}, run=run)
    took = time.monotonic() - began
    assert result.status is Status.WALL_TIME and 0.4 <= result.seconds <= took < 10
    stored = read_run(tmp_path / "r")
    assert (np.diff(stored.columns["time"]) >= 0).all() and 0 <= stored.columns["time"][0] and stored.columns["time"][-1] <= took
    assert stored.columns["iteration"].tolist() == list(range(len(result.steps)))
    assert stored.completion is not None and 0 < stored.completion.seconds <= took and Jumping.jumps > len(result.steps)


@pytest.mark.fault(55)
def test_runs_are_told_apart_though_the_clock_stands_still(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Names of runs hold the date: the second gets another name and takes nothing from the first."""

    class Still(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime(2030, 1, 1, tzinfo=tz)

    monkeypatch.chdir(tmp_path)
    tell(monkeypatch, Still)
    config = settings(data={"path": str(shards(tmp_path))}, stop={"iterations": 1})
    paths = {run_training(config, SerialCommunicator()).directory for _ in range(3)}
    assert len(paths) == 3 and all(read_run(path).completion for path in paths)
