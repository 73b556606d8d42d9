"""The benchmarks' arithmetic against known answers, and their documents; what they measure is not judged here."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "train"))
from train_cases import shards

from apts_mpi import bench_cli
from apts_mpi.__main__ import main
from apts_mpi.bench import io, measure, reduce, report, step
from apts_mpi.network import Network
from apts_mpi.parallel.serial import SerialCommunicator
from apts_mpi.presets import preset
from apts_mpi.problem.losses import resolve_loss
from apts_mpi.timing import Timers


@pytest.mark.parametrize("ranks", [2, 3, 8, 1000])
@pytest.mark.parametrize(("latency", "bandwidth"), [(50e-6, 1.25e9), (1e-6, 25e9), (1e-3, 0.125e9)])
def test_the_fit_finds_the_network_that_made_the_points(ranks: int, latency: float, bandwidth: float) -> None:
    network = Network(latency, bandwidth, ranks)
    found = reduce.fit([(nbytes, network.seconds(nbytes)) for nbytes in reduce.sizes(2**24)], ranks)
    assert found["latency_s"] == pytest.approx(latency, rel=1e-6)
    assert found["bandwidth_bytes_per_s"] == pytest.approx(bandwidth, rel=1e-6)
    assert found["error_max"] < 1e-6


def test_the_fit_is_never_negative_and_says_how_far_it_is_off() -> None:
    falling = reduce.fit([(16, 2e-5), (1024, 1.5e-5), (4096, 1e-5)], 2)
    assert falling["latency_s"] > 0 and falling["bandwidth_bytes_per_s"] == 0
    assert 0.1 < falling["error_max"] < 1
    steep = reduce.fit([(16, 1e-9), (1024, 1e-6), (4096, 1e-5)], 2)
    assert steep["latency_s"] >= 0 and steep["bandwidth_bytes_per_s"] > 0


def test_sizes() -> None:
    assert reduce.sizes(1024) == [16, 64, 256, 1024]
    assert reduce.sizes(1001) == [16, 64, 256, 1000]
    with pytest.raises(ValueError, match="max-bytes must be at least 16"):
        reduce.sizes(8)


def test_statistics() -> None:
    found = measure.compared([2.0] * 20, [1.0] * 10 + [4.0] * 10)
    assert found["ratio"]["median"] == 1.25 and found["repeats"] == 20
    assert found["ours_s"]["interval_95"] == [2.0, 2.0]
    draws = np.random.default_rng(1).normal(10, 1, 200).tolist()
    low, high = measure.interval(draws)
    assert low < np.median(draws) < high < low + 0.6
    with pytest.raises(ValueError, match="at least 15, got 14"):
        measure.Plan(14)


def test_pairs_alternate_and_the_first_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    monkeypatch.setattr(measure, "clock", lambda comm, work, calls: work() or float(len(order)))
    found = measure.in_turn(SerialCommunicator(), lambda: order.append("ours"), lambda: order.append("base"), measure.Plan(16, 2))
    assert order == ["base", "ours", "ours", "base"] * 9
    assert found["repeats"] == 16


def test_which_arguments_are_settings() -> None:
    words = "bench step --samples 5 --local.iters 3 --method=sgd --data.limit=4 --repeats 15 --preset lsr1"
    own, given = bench_cli.split_settings(words.split())
    assert own == ["bench", "step", "--samples", "5", "--repeats", "15"]
    assert given == ["--local.iters", "3", "--method=sgd", "--data.limit=4", "--preset", "lsr1"]


def document(folder: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> dict[str, Any]:
    out = folder / "out.json"
    monkeypatch.chdir(folder)
    assert main(["bench", *words, "--repeats", "15", "--out", str(out)]) == 0
    found: dict[str, Any] = json.loads(out.read_text())
    head = [found[key] for key in ("format", "bench", "ranks", "repeats", "warm_up_pairs")]
    assert head == ["apts-mpi bench", words[0], 1, 15, 3]
    assert found["oversubscribed"] is False and found["provenance"]["versions"]["torch"]
    for key in ("ours_s", "base_s", "ratio"):
        low, high = found[key]["interval_95"]
        assert 0 < low <= found[key]["median"] <= high
    return found


@pytest.mark.parametrize(("method", "preset"), [
    ("apts", "lsr1"), ("apts", "default"), ("sgd", "default"), ("local-sgd", "default"), ("trust-region", "default"),
])  # fmt: skip
def test_a_step_and_its_floor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, preset: str) -> None:
    words = ["--samples", "40", "--model.widths", "4", "--local.iters", "2", "--method", method, "--preset", preset]
    words += ["--baseline.period", "2"]
    found = document(tmp_path, monkeypatch, "step", *words)
    assert found["n_params"] == 784 * 4 + 4 + 4 * 10 + 10 and found["samples_per_rank"] == 40
    assert found["emulated_network"] == "" and f'method = "{method}"' in found["settings"]
    assert found["evaluations_per_iteration"] >= 1 and found["reductions_per_iteration"] >= 1 and found["busiest_to_mean"]["median"] == 1


class Uneven:
    """A rig on a rank that makes a gradient of 7 samples and a loss of 6 in an iteration in which all ranks together make 100 gradients."""

    timers = Timers()

    def __init__(self) -> None:
        self.passes: list[step.Pass] = []

    def step(self, k: int) -> Any:
        self.passes += [step.Pass(7, gradient=True), step.Pass(6, gradient=False)]
        return SimpleNamespace(gradient_samples=100, reductions=3)


def test_the_floor_of_a_rank_is_its_own_passes() -> None:
    asked = []
    bare: Any = SimpleNamespace(inputs=range(10), run=lambda passes, reductions: asked.append((passes, reductions)))
    found = step._run(SerialCommunicator(), Uneven(), bare, measure.Plan(15, 2))  # type: ignore[arg-type]
    assert asked == [([(7, True), (6, False)], 3)] * 17
    assert found["evaluations_per_iteration"] == 10 and found["busiest_to_mean"]["median"] == 1


def test_the_passes_of_an_iteration_are_noted_and_made_again() -> None:
    config = preset("default", model={"widths": (4,)}, solver={"subdomains": 2})
    rig = step.build(SerialCommunicator(), config, (784,), 2200)
    info = rig.step(0)
    assert sum(samples for samples, gradient in rig.passes if gradient) == info.gradient_samples
    assert sum(samples for samples, gradient in rig.passes if not gradient) == info.value_samples
    made, sums = list[step.Pass](), list[int]()
    module = torch.nn.Linear(784, 10)

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        made.append(step.Pass(len(outputs), outputs.requires_grad))
        return resolve_loss("cross_entropy")(outputs, targets)

    bare = step.Bare(module, loss, rig.inputs[:2200], rig.targets[:2200], lambda: sums.append(1), rig.piece)
    bare.run(rig.passes, info.reductions)
    assert made == rig.passes and {gradient for _, gradient in made} == {True, False} and len(sums) == info.reductions
    assert module.weight.grad is not None


def test_pieces_of_one_gradient_are_added_up_in_the_floor() -> None:
    inputs, targets = torch.randn(1500, 3, dtype=torch.float64), torch.randint(2, (1500,))
    module = torch.nn.Linear(3, 2, dtype=torch.float64)  # in float32 a sum of 1500 terms, taken in pieces, is right to fewer digits

    loss = resolve_loss("cross_entropy")
    whole = torch.autograd.grad(loss(module(inputs), targets).sum(), module.weight)[0]
    bare = step.Bare(module, loss, inputs, targets, lambda: None, 1024)
    for _ in range(2):  # the second one begins anew
        bare.run([step.Pass(1024, True), step.Pass(476, True)], 0)
        torch.testing.assert_close(module.weight.grad, whole)


def test_a_step_on_an_emulated_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = ["--samples", "40", "--model.widths", "4", "--method", "sgd"]
    found = document(tmp_path, monkeypatch, "step", *small, "--comm.emulate_latency", "2e-3", "--comm.emulate_ranks", "2")
    assert found["emulated_network"].startswith("emulated network: 2000 us")
    assert found["ours_s"]["median"] > 2e-3


def test_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = shards(tmp_path)
    for words, cache in (((), "warm"), (("--cold",), "cold")):
        found = document(tmp_path, monkeypatch, "io", str(path), *words)
        assert found["cache"] == cache and found["samples"] == 120
        assert found["bytes"] == sum(file.stat().st_size for file in path.glob("train-*.h5"))


def test_ranks_share_the_bytes_of_the_files(tmp_path: Path) -> None:
    for name, size in (("a", 1000), ("b", 2000), ("c", 30)):
        (tmp_path / name).write_bytes(b"x" * size)
    held = [("a", 10), ("b", 20), ("c", 3)]
    found = [io.parts(tmp_path, held, mine) for mine in (range(0, 11), range(11, 22), range(22, 33))]
    assert [[(path.name, lo, hi) for path, lo, hi in parts] for parts in found] == [
        [("a", 0, 1000), ("b", 0, 100)], [("b", 100, 1200)], [("b", 1200, 2000), ("c", 0, 30)]
    ]  # fmt: skip
    assert [io.read_plain(parts) for parts in found] == [1100, 1100, 830]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["reduce"], "at least 2 ranks"),
        (["step", "--repeats", "3"], "at least 15"),
        (["step", "--threads", "4096"], "4096 threads on the"),
        (["step", "--local.iter", "3"], "did you mean"),
        (["reduce", "--local.iters", "3"], "unrecognized arguments"),
        (["io", "nowhere"], "nowhere"),
    ],
)
def test_refused(words: list[str], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["bench", *words]) == 2
    assert text in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


class Crowd(SerialCommunicator):
    """Ranks on two hosts, with the cores that each may use."""

    def __init__(self, *places: tuple[str, list[int]]) -> None:
        super().__init__()
        self.places = places

    def gather_text(self, text: str) -> list[str]:
        return [json.dumps(place) for place in self.places]


def test_cores_are_counted_host_by_host() -> None:
    bound = Crowd(("a", [0]), ("a", [1]), ("b", [0]), ("b", [1]))
    assert not report.oversubscribed(bound, 1, allowed=False)
    with pytest.raises(ValueError, match="2 ranks of 2 threads on the 2 cores of a"):
        report.oversubscribed(bound, 2, allowed=False)
    assert report.oversubscribed(bound, 2, allowed=True)
    assert not report.oversubscribed(Crowd(("a", [0, 1]), ("a", [0, 1])), 1, allowed=False)
    with pytest.raises(ValueError, match="3 ranks"):
        report.oversubscribed(Crowd(*[("a", [0, 1])] * 3), 1, allowed=False)


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    path = shards(tmp_path)
    assert main(["bench", "io", str(path), "--repeats", "15", "--out", str(tmp_path / "none" / "x.json")]) == 4
    assert "cannot write" in capsys.readouterr().err
