"""The search for a learning rate: its runs, its table, its cost, and that a search cut short goes on."""

from __future__ import annotations

import json
import math
import os
import signal
from pathlib import Path

import pytest
from train_cases import QUIET, settings, shards

from apts_mpi import cli
from apts_mpi.__main__ import main
from apts_mpi.contracts import Status
from apts_mpi.loop import Loop
from apts_mpi.parallel.serial import SerialCommunicator
from apts_mpi.presets import preset
from apts_mpi.rundir import read_run
from apts_mpi.tune import TUNE, Rate, Trial, best_of, check, folder_of, plan, summary, table, tune


def words(folder: Path, *more: str) -> list[str]:
    data = ["--data.path", str(folder / "set"), "--data.batch", "40", "--run.device", "cpu", "--run.dir", str(folder / "search")]
    return ["tune", "--method", "sgd", *data, "--stop.epochs", "3", *more]


def test_search_and_its_continuation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards(tmp_path)
    assert main(words(tmp_path, "--lrs", "1e-4,0.1", "--seeds=0,1")) == 0
    out = capsys.readouterr().out
    assert "4/4  lr 0.1" in out and "best learning rate: 0.1" in out and "cost of the search: 4 runs, 12.0 passes" in out
    found = json.loads((tmp_path / "search" / TUNE).read_text())
    assert found["best_lr"] == 0.1 and [rate["lr"] for rate in found["rates"]] == [1e-4, 0.1] and found["config"]["method"] == "sgd"
    accuracies = [read_run(tmp_path / "search" / run["run"]).completion.accuracy for run in found["runs"]]
    assert found["rates"][1]["accuracy"] == pytest.approx((accuracies[1] + accuracies[3]) / 2)
    assert found["cost"]["reductions"] == 4 * 9 and found["cost"]["passes"] == pytest.approx(12)
    assert {run["reductions"] for run in found["runs"]} == {9}
    assert {read_run(tmp_path / "search" / run["run"]).completion.messages for run in found["runs"]} == {9}  # of each run alone

    ends = [tmp_path / "search" / run["run"] / "completion.json" for run in found["runs"]]
    made = [path.stat().st_mtime_ns for path in ends]
    (tmp_path / "search" / found["runs"][2]["run"] / "completion.json").unlink()  # cut short
    assert main(words(tmp_path, "--lrs", "0.1,1e-4,0.03", "--seeds=0,1")) == 0
    assert [path.stat().st_mtime_ns == then for path, then in zip(ends, made, strict=True)] == [True, True, False, True]
    again = json.loads((tmp_path / "search" / TUNE).read_text())
    assert len(again["runs"]) == 6 and again["rates"][0]["accuracy"] == found["rates"][1]["accuracy"]


def test_ctrl_c_stops_a_run_of_the_search_and_the_same_command_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shards(tmp_path)
    iterate, calls = Loop._iterate, list[int]()

    def hit(self: Loop, k: int) -> Status:
        calls.append(k)
        if len(calls) == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return iterate(self, k)

    monkeypatch.setattr(Loop, "_iterate", hit)
    assert main(words(tmp_path, "--lrs", "0.1,0.2")) == 75
    told = f"stopped on request in {tmp_path / 'search' / 'lr-0.1-seed-0'} after iteration 4, saved; the same command goes on\n"
    assert capsys.readouterr().out == told
    assert main(words(tmp_path, "--lrs", "0.1,0.2")) == 0
    assert calls[:5] == [0, 1, 2, 3, 4], "from where it was left"


def test_other_settings_are_other_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards(tmp_path)
    epochs = []
    for momentum in ("0.9", "0.9", "0.5"):
        assert main(words(tmp_path, "--lrs", "0.1", "--baseline.momentum", momentum)) == 0
        epochs.append((tmp_path / "search" / "lr-0.1-seed-0" / "provenance.json").stat().st_mtime_ns)
    assert epochs[0] == epochs[1] != epochs[2]
    assert (tmp_path / "search" / "lr-0.1-seed-0" / "earlier-1" / "completion.json").exists()


def test_rates_that_are_nearly_equal_are_runs_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards(tmp_path)
    for _ in range(2):
        assert main(words(tmp_path, "--lrs", "0.1,0.1000000001")) == 0
    assert {path.name for path in (tmp_path / "search").glob("lr-*")} == {"lr-0.1-seed-0", "lr-0.1000000001-seed-0"}
    assert not list((tmp_path / "search").glob("*/earlier-*"))


@pytest.mark.filterwarnings("ignore:overflow")
def test_rates_that_diverge_are_never_best(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards(tmp_path)
    assert main(words(tmp_path, "--lrs", "1e30,0.01", "--stop.nonfinite", "2")) == 0
    found = json.loads((tmp_path / "search" / TUNE).read_text())
    assert found["best_lr"] == 0.01 and [rate["diverged"] for rate in found["rates"]] == [1, 0] and found["rates"][0]["loss"] is None
    assert main(words(tmp_path, "--lrs", "1e30", "--stop.nonfinite", "2")) == cli.NUMERICAL
    assert "every learning rate diverged" in capsys.readouterr().out
    assert json.loads((tmp_path / "search" / TUNE).read_text())["best_lr"] is None


def test_the_rate_that_reaches_the_target_with_least_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards(tmp_path)
    goal = ["--by", "target", "--stop.target_accuracy", "75", "--run.evaluate_iterations", "1"]
    assert main(words(tmp_path, "--lrs", "1e-7,0.02,0.2", *goal)) == 0
    rates = json.loads((tmp_path / "search" / TUNE).read_text())["rates"]
    runs = {lr: read_run(tmp_path / "search" / f"lr-{lr:g}-seed-0").columns for lr in (0.02, 0.2)}
    needed = {lr: columns["passes"][(columns["accuracy"] >= 75).argmax()] for lr, columns in runs.items()}
    assert rates[0]["target_passes"] is None and [rate["target_passes"] for rate in rates[1:]] == pytest.approx(list(needed.values()))
    assert json.loads((tmp_path / "search" / TUNE).read_text())["best_lr"] == min(needed, key=lambda lr: needed[lr])
    assert main(words(tmp_path, "--lrs", "1e-7", *goal)) == cli.NUMERICAL
    assert "no learning rate reached stop.target_accuracy" in capsys.readouterr().out


@pytest.mark.parametrize(("more", "message"), [
    ([], "the following arguments are required: --lrs"),
    (["--lrs"], "argument --lrs: expected one argument"),
    (["--lrs", "0.1,x"], "argument --lrs: must be numbers with commas between, such as 0.1,0.01 or 0,1000; got '0.1,x'"),
    (["--lrs", "0.1", "--seeds", "1.5"], "argument --seeds: must be numbers with commas between, such as 0.1,0.01 or 0,1000; got '1.5'"),
    (["--lrs", "0.1,-1"], "baseline.lr must be positive and finite, got -1"),
    (["--lrs", "0.1", "--by", "time"], "argument --by: invalid choice: 'time'"),
    (["--lrs", "0.1", "--by", "target"], "--by target needs --stop.target_accuracy"),
    (["--lrs", "0.1", "--method", "apts"], "method must be one of sgd, adam, adamw, local-sgd, got apts"),
    (["--lrs", "0.1", "--stop.epoch", "3"], "did you mean --stop.epochs?"),
    (["--lrs", "0.1", "--data.path", "nowhere"], "no data set at nowhere"),
])  # fmt: skip
def test_wrong_usage(more: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words(tmp_path, *more)) == cli.USAGE
    assert message in capsys.readouterr().err


def test_summary_and_choice_by_hand() -> None:
    runs = [
        Trial(0.1, 0, "a", "epochs done", 90.0, 0.3, 1, 1, 1, 1), Trial(0.1, 1, "b", "epochs done", 94.0, 0.5, 1, 1, 1, 1),
        Trial(0.2, 0, "c", "epochs done", 95.0, 0.6, 1, 1, 1, 1), Trial(0.2, 1, "d", "epochs done", 92.0, 0.7, 1, 1, 1, 1),
        Trial(0.3, 0, "e", "epochs done", 99.0, 0.1, 1, 1, 1, 1),
        Trial(0.3, 1, "f", "too many non-finite trials in a row", 99.0, 0.1, 1, 1, 1, 1),
    ]  # fmt: skip
    first, second, third = summary(runs, [0.1, 0.2, 0.3])
    assert (first.accuracy, first.accuracy_spread, first.loss, first.diverged) == (92.0, 2.0, 0.4, 0) and second.accuracy == 93.5
    assert third.diverged == 1 and math.isnan(third.loss)
    assert best_of([first, second, third], "accuracy") is second and best_of([first, second, third], "loss") is first
    unlabelled = [Rate(lr, math.nan, math.nan, loss, 0) for lr, loss in ((1.0, 0.5), (2.0, 0.4))]
    assert best_of(unlabelled, "accuracy") is unlabelled[1] and best_of([third], "accuracy") is None
    equal = [Rate(lr, 90.0, 0.0, loss, 0) for lr, loss in ((1.0, 0.5), (2.0, 0.4))]
    assert best_of(equal, "accuracy") is equal[1]
    assert [text.endswith("best") for text in table([first, second, third], second)] == [False, False, True, False]
    assert "nan" not in "".join(table([third, *unlabelled], None))


def test_without_a_directory_the_settings_name_it() -> None:
    one, other = (preset("default", "adam", stop={"epochs": epochs}) for epochs in (3, 4))
    assert folder_of(one) == folder_of(preset("default", "adam", stop={"epochs": 3})) != folder_of(other)
    assert [(run.baseline.lr, run.run.seed) for run in plan(one, [0.1, 0.2], [3, 4])] == [(0.1, 3), (0.2, 3), (0.1, 4), (0.2, 4)]
    with pytest.raises(ValueError, match="tune looks for a learning rate"):
        check(preset("default", "trust-region"))


def test_a_search_says_what_it_did_line_by_line(tmp_path: Path) -> None:
    shards(tmp_path)
    keys = {"data": {"path": str(tmp_path / "set")}, "run": {**QUIET, "dir": str(tmp_path / "x")}, "stop": {"epochs": 2}}
    lines: list[str] = []
    assert tune(settings("default", method="adam", **keys), [0.01, 0.02], [5], "loss", SerialCommunicator(), lines.append) == 0
    assert lines[0].startswith("1/2  lr 0.01     seed 5 ") and lines[-2].startswith("best learning rate: 0.0")
    assert lines[-1] in [f"it is the {which} that was tried: a better one may lie beyond" for which in ("smallest", "largest")]
