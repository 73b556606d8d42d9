"""The constants that bench compute measures: what it calls, what it writes, and that the cost model can read it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from apts_mpi.__main__ import main
from apts_mpi.bench import compute
from apts_mpi.parallel.serial import SerialCommunicator
from apts_mpi.presets import preset
from apts_mpi.problem.flat import FlatModel
from apts_mpi.problem.losses import resolve_loss
from apts_mpi.problem.models import build_model
from apts_mpi.study.cost import PARTS, predict
from apts_mpi.study.machine import read_machine

N = 784 * 4 + 4 + 4 * 10 + 10
SMALL = ["--model.widths", "4", "--local.memory", "2", "--global_step.memory", "3"]


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute, "SIZES", (1, 16, 64))
    monkeypatch.setattr(compute, "BLOCK", 1e-5)
    monkeypatch.setattr(compute, "LARGE", 80_000)


def test_what_is_written_prices_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "compute", *SMALL, "--repeats", "15", "--out", "compute-P1.json"]) == 0
    assert "L-SR1" in capsys.readouterr().out
    found = json.loads(Path("compute-P1.json").read_text())
    assert (found["bench"], found["n_params"], found["ranks"], found["repeats"]) == ("compute", N, 1, 15)
    for name in ("gradient", "value", "chunk", "select", "take"):
        assert [row["samples"] for row in found[name]] == [1, 16, 64]
        assert all(0 < row["interval_95"][0] <= row["median"] <= row["interval_95"][1] for row in found[name])
    assert len(found["lsr1"]["steps"]) == 4 and set(found["optimizer"]) == {"sgd", "adam", "adamw"}
    assert found["copy"]["copy_large"]["bytes_per_s"] == pytest.approx(160_000 / found["vector"]["copy_large"]["median"])
    assert sum(found["parts"]["bytes"]) == 4 * N and "memory = 2" in found["settings"]
    machine = read_machine(tmp_path)
    assert machine is not None
    for config in (preset("lsr1", data={"batch": 32}), preset("default"), preset("default", "adam", baseline={"overlap": True})):
        parts = predict(machine, config, N, 1, 64).parts
        assert set(parts) == set(PARTS) and parts["gradients"] > 0 and parts["overhead"] > 0 and parts["messages"] >= 0


def test_a_name_that_lies_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "compute", *SMALL, "--repeats", "15", "--out", "compute-P2.json"]) == 0
    with pytest.raises(ValueError, match=r"compute-P2\.json.*measured with 1 ranks"):
        read_machine(tmp_path)


def test_the_memory_is_full_when_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    model = compute._QuasiNewton(50, 3, torch.float32)
    counts = list[int]()
    propose = model.model.propose_
    monkeypatch.setattr(model.model, "propose_", lambda *a: counts.append(model.model.count) or propose(*a))  # type: ignore[func-returns-value]
    found = model.run(SerialCommunicator())
    assert counts == [0, 1, 2, 3, 3] and list(found) == ["begin", "0", "1", "2", "3"]
    assert min(found.values()) > 0


def test_parts_become_final_in_turn() -> None:
    config = preset("default", model={"widths": (8, 4)})
    flat = FlatModel(build_model(config.model, (1, 28, 28), 10, 0), torch.float32, torch.device("cpu"))
    objective = compute._objective(flat, resolve_loss("cross_entropy"), (1, 28, 28), 16, 0)
    times = compute._Parts(flat, objective, 1).run(SerialCommunicator())
    assert len(times) == 4 and 0 < times[0] < times[1] < times[2] <= times[3]


def test_every_call_of_select_takes_a_fresh_minibatch() -> None:
    config = preset("default", model={"widths": (4,)})
    flat = FlatModel(build_model(config.model, (1, 28, 28), 10, 0), torch.float32, torch.device("cpu"))
    objective = compute._objective(flat, resolve_loss("cross_entropy"), (1, 28, 28), 16, 0)
    works = compute._evaluations(objective, 16, flat.initial(), flat.initial())
    chosen = list[int]()
    original = type(objective.subdomains[0]).select

    def select(self: object, epoch: int, batch: int, total: int) -> None:
        chosen.append(2 * epoch + batch)
        original(self, epoch, batch, total)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(objective.subdomains[0]), "select", select)
        for _ in range(5):
            works["select"]()
    assert chosen == [1, 2, 3, 4, 5]
