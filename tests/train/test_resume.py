"""Checkpoints and going on from them: the same bits, the right refusals, and nothing lost when the disk fails."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from train_cases import network, settings, task

from apts_mpi import Result, Status, train
from apts_mpi.__main__ import main
from apts_mpi.checkpoints import Checkpoints, best_interval
from apts_mpi.cli import read_settings
from apts_mpi.identity import completed
from apts_mpi.parallel.handshake import HandshakeError
from apts_mpi.parallel.serial import SerialCommunicator
from apts_mpi.regular import SUM, with_sum
from apts_mpi.rundir import read_run
from apts_mpi.safety import CheckpointConfig, Every, every
from apts_mpi.storage import checkpoint as files
from apts_mpi.storage.files import DataError
from apts_mpi.study.tables import sections

SAME = ("iteration", "epoch", "loss", "grad_norm", "rho", "radius", "step_norm", "global_radius", "loss_new", "passes",
        "gradient_samples", "value_samples", "reductions_total", "status")  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "full batch": {},
    "minibatch": {"data": {"batch": 60, "overlap": 0.1}},
    "sweep": {"name": "default", "data": {"batch": 60}},
    "sweep, full batch": {"name": "default", "local": {"memory": 3}},
    "adam": {"method": "adam", "data": {"batch": 60}},
    "local-sgd": {"method": "local-sgd", "data": {"batch": 60}, "baseline": {"period": 2}},
    "trust-region": {"method": "trust-region"},
    "paper": {"name": "paper"},
    "overlapped sgd in float64": {
        "method": "sgd", "data": {"batch": 60}, "baseline": {"overlap": True, "nesterov": True}, "model": {"dtype": "float64"},
    },
}


def run(
    folder: Path, iterations: int, seed: int = 0, module: Any = None, tensors: Any = None, name: str = "lsr1", **sections: Any
) -> Result:
    sections = {"solver": {"subdomains": 3}, "checkpoint": {"every": "2"}, **sections}
    sections["run"] = {"dir": str(folder), "seed": seed, **sections.get("run", {})}
    sections["stop"] = {"epochs": 0, "iterations": iterations, **sections.get("stop", {})}
    data, held = tensors or task(), task(samples=50, seed=9)
    return train(module or network(), *data, test=held, config=settings(name, **sections), comm=SerialCommunicator())


def on(folder: Path, iterations: int, **sections: Any) -> Result:
    sections["run"] = {"resume": "must", **sections.get("run", {})}
    return run(folder, iterations, **sections)


def same_records(first: Path, second: Path) -> None:
    one, two = read_run(first).columns, read_run(second).columns
    both = ~(np.isnan(one["accuracy"]) | np.isnan(two["accuracy"]))  # the end of a part is one more occasion to look
    assert both.any() and np.array_equal(one["accuracy"][both], two["accuracy"][both])
    for name in SAME:
        equal = np.array_equal(one[name], two[name], equal_nan=one[name].dtype.kind == "f")
        assert equal, f"{name}: {one[name]} {two[name]}"


def told(result: Result) -> str:
    """The steps as text, where nan is nan, but for the flags: one of a checkpoint is raised when its time has come."""
    return str([replace(info, raised=frozenset()) for info in result.steps])


def flip(path: Path, at: int = -100) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_in_two_parts_has_the_bits_of_one(tmp_path: Path, kind: str) -> None:
    whole = run(tmp_path / "whole", 11, **KINDS[kind])
    run(tmp_path / "parts", 5, **KINDS[kind])
    second = on(tmp_path / "parts", 11, **KINDS[kind])
    assert torch.equal(second.theta, whole.theta) and second.passes == whole.passes and second.reductions == whole.reductions
    assert told(second) == told(whole)
    same_records(tmp_path / "whole", tmp_path / "parts")
    known = [read_run(tmp_path / part).completion for part in ("whole", "parts")]
    assert known[0] and known[1] and known[0].theta_sha256 == known[1].theta_sha256
    assert (known[0].messages, known[0].bytes) == (known[1].messages, known[1].bytes)


def test_from_a_checkpoint_in_the_middle(tmp_path: Path) -> None:
    """Records behind the checkpoint are cut off and made again."""
    whole = run(tmp_path / "run", 9, checkpoint={"every": "4", "keep": 9})
    kept = (tmp_path / "run" / "records.csv").read_bytes()
    (tmp_path / "run" / "completion.json").unlink()
    for sequence in files.sequences(tmp_path / "run" / "checkpoints")[:-1]:
        files.stem(tmp_path / "run" / "checkpoints", sequence).with_suffix(".json").unlink()
    second = on(tmp_path / "run", 9, checkpoint={"every": "4", "keep": 9})
    assert torch.equal(second.theta, whole.theta)
    again = (tmp_path / "run" / "records.csv").read_bytes()
    assert len(again.splitlines()) == len(kept.splitlines()) == 10 and again.splitlines()[:5] == kept.splitlines()[:5]


def test_what_is_written_beside_the_run(tmp_path: Path) -> None:
    run(tmp_path / "run", 6)
    folder = tmp_path / "run" / "checkpoints"
    before = files.highest(folder)
    on(tmp_path / "run", 8)
    known = json.loads((tmp_path / "run" / "resumed-1.json").read_text())
    assert known["resumed_after_iteration"] == 6 and "changed: stop.iterations: 6 -> 8" in known["notes"]
    assert 'iterations = 8' in (tmp_path / "run" / "config.toml").read_text()
    assert files.sequences(folder) == [files.highest(folder), files.highest(folder) - 1] and files.highest(folder) > before


def test_a_run_that_was_gone_on_with_is_shown_as_one(tmp_path: Path) -> None:
    run(tmp_path / "run", 3)
    assert all("start" not in heading and "resumed  " not in "".join(lines) for heading, lines in sections(read_run(tmp_path / "run")))
    for iterations in (5, 6):
        on(tmp_path / "run", iterations)
    shown = dict(sections(read_run(tmp_path / "run")))
    assert "resumed " in "\n".join(shown["Result"]) and "2 times, after iteration 3, 5" in "\n".join(shown["Result"])
    assert any(heading.endswith("since the last start after iteration 5") for heading in shown)


def test_nothing_left_to_do(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    first = run(tmp_path / "run", 6)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    second = on(tmp_path / "run", 6, run={"monitor": "plain"})
    assert second.status is Status.ITERATIONS and second.exit_code == 0 and torch.equal(second.theta, first.theta)
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert "nothing is left to do" in capfd.readouterr().out


@pytest.mark.parametrize("kind", [
    {"method": "local-sgd", "baseline": {"period": 2, "average": 2}},
    {"method": "local-sgd", "baseline": {"period": 3, "average": 2}},
    {"method": "adam", "baseline": {"average": 2}},
])  # fmt: skip
@pytest.mark.parametrize("iterations", [5, 6])
def test_the_loss_of_the_mean_is_the_same_where_nothing_is_left_to_do(tmp_path: Path, kind: dict[str, Any], iterations: int) -> None:
    """It is that on the minibatch which was used last; five minibatches are an epoch."""
    kind = {**kind, "data": {"batch": 48}}
    first = run(tmp_path / "run", iterations, **kind)
    second = on(tmp_path / "run", iterations, **kind)
    stored = read_run(tmp_path / "run").completion
    assert stored and second.status is Status.ITERATIONS and second.loss == first.loss == stored.loss


def test_killed_between_the_last_checkpoint_and_the_completion_record(tmp_path: Path) -> None:
    first = run(tmp_path / "run", 6)
    before = read_run(tmp_path / "run").completion
    for name in ("completion.json", "parameters.h5", "timing.csv"):
        (tmp_path / "run" / name).unlink()
    second = on(tmp_path / "run", 6)
    after = read_run(tmp_path / "run").completion
    assert second.status is Status.ITERATIONS and torch.equal(second.theta, first.theta)
    assert before and after and after.theta_sha256 == before.theta_sha256 and after.passes == before.passes


@pytest.mark.fault(60)
def test_a_damaged_checkpoint_is_passed_over_loudly(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    whole = run(tmp_path / "whole", 9)
    run(tmp_path / "run", 7)
    (tmp_path / "run" / "completion.json").unlink()
    folder = tmp_path / "run" / "checkpoints"
    newest, older = files.sequences(folder)
    left = files.read(folder, older).facts["iteration"]  # 6, or less where the disk is slow
    flip(files.stem(folder, newest).with_suffix(".h5"))
    second = on(tmp_path / "run", 9, run={"monitor": "plain"})
    said = capfd.readouterr().out
    assert "passed over a damaged checkpoint" in said and left < 7 and f"after iteration {left}" in said
    assert torch.equal(second.theta, whole.theta)
    same_records(tmp_path / "whole", tmp_path / "run")
    assert (folder / f"{newest:06d}.json.damaged").exists() and newest not in files.sequences(folder)


@pytest.mark.fault(61)
@pytest.mark.parametrize("resume", ["must", "auto"])
def test_all_damaged_is_refused(tmp_path: Path, resume: str) -> None:
    run(tmp_path / "run", 7)
    for path in (tmp_path / "run" / "checkpoints").glob("*.h5"):
        flip(path)
    with pytest.raises(HandshakeError, match=r"no checkpoint of .*run is whole(.|\n)*to start afresh: --run.dir with that"):
        on(tmp_path / "run", 9, run={"resume": resume})
    assert run(tmp_path / "run", 2).status is Status.ITERATIONS  # afresh, on purpose
    assert (tmp_path / "run" / "earlier-1" / "checkpoints").is_dir()


def test_automatic_begins_where_there_is_nothing(tmp_path: Path) -> None:
    first = on(tmp_path / "run", 5, run={"resume": "auto"})
    second = on(tmp_path / "run", 8, run={"resume": "auto"})
    assert len(first.steps) == 5 and len(second.steps) == 8 and told(second).startswith(told(first)[:-1])


def test_must_needs_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(HandshakeError, match="holds no checkpoint to go on from"):
        on(tmp_path / "run", 5)
    with pytest.raises(HandshakeError, match="needs run.dir"):
        on(Path(""), 5, run={"dir": ""})


def test_a_finished_run_without_checkpoints_is_not_run_again(tmp_path: Path) -> None:
    run(tmp_path / "run", 3, checkpoint={"every": "off"})
    assert not (tmp_path / "run" / "checkpoints").exists()
    with pytest.raises(HandshakeError, match="is finished and kept no checkpoint"):
        on(tmp_path / "run", 5, run={"resume": "auto"})


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "config": ({"local": {"iters": 3}}, "local.iters: 10 -> 3"),
    "seed": ({"seed": 4}, "run.seed: 0 -> 4"),
    "subdomains": ({"solver": {"subdomains": 5}}, "solver.subdomains: 3 -> 5"),
    "memory": ({"global_step": {"memory": 3}}, "global_step.memory: 5 -> 3"),
    "data": ({"tensors": task(seed=5)}, "of other data"),
    "model": ({"module": network(hidden=5)}, "of another model"),
    "method": ({"method": "sgd"}, "method: 'apts' -> 'sgd'"),
}


@pytest.mark.fault(63)
@pytest.mark.parametrize("case", REFUSED)
def test_another_run_is_refused_with_the_difference(tmp_path: Path, case: str) -> None:
    run(tmp_path / "run", 5)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    changes, words = REFUSED[case]
    with pytest.raises(HandshakeError, match=words):
        on(tmp_path / "run", 8, **changes)
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}


@pytest.mark.parametrize("case", ["config", "subdomains", "data"])
def test_a_change_may_be_allowed(tmp_path: Path, case: str, capfd: pytest.CaptureFixture[str]) -> None:
    first = run(tmp_path / "run", 5)
    second = on(tmp_path / "run", 8, **REFUSED[case][0], run={"allow_changes": True, "monitor": "plain"})
    assert len(second.steps) == 8 and told(second).startswith(told(first)[:-1]) and second.loss < first.loss
    assert "note: changed: " in capfd.readouterr().out


@pytest.mark.parametrize(("first", "then"), [
    ({"data": {"batch": 60}}, {}), ({"local": {"memory": 0}}, {}), ({"local": {"memory": 3}}, {"local": {"memory": 5}}),
    ({"local": {"memory": 5}}, {"local": {"memory": 3}}), ({"name": "lsr1"}, {}), ({}, {"data": {"batch": 60}}),
])  # fmt: skip
def test_a_metric_begins_anew_where_the_checkpoint_has_none_that_fits(tmp_path: Path, first: dict[str, Any], then: dict[str, Any]) -> None:
    start = run(tmp_path / "run", 4, **{"name": "default", **first})
    second = on(tmp_path / "run", 9, **{"name": "default", **then}, run={"allow_changes": True})
    assert len(second.steps) == 9 and second.loss < start.loss


@pytest.mark.parametrize("method", ["adam", "sgd"])
def test_a_key_that_a_method_does_not_have_may_change(tmp_path: Path, method: str) -> None:
    run(tmp_path / "run", 4, method=method, data={"batch": 60})
    changed = {"local": {"momentum": 0.5}, "trust_region": {"reached": 0.8}, "solver": {"subdomains": 3, "average": 3}}
    assert len(on(tmp_path / "run", 6, method=method, data={"batch": 60}, **changed).steps) == 6


@pytest.mark.parametrize(("given", "reached", "average"), [
    ({"method": "apts", "local.solver": "lsr1", "solver.average": 8}, 0.8, 0),
    ({"method": "apts", "local.solver": "sweep", "solver.average": 8}, 0.55, 0),
    ({"method": "adam", "local.solver": "lsr1", "solver.average": 8}, 0.8, 8),
    ({"method": "adam", "local.solver": "lsr1"}, 0.8, 0),
    ({"method": "adam", "local.solver": "lsr1", "trust_region.reached": 0.3, "baseline.average": 2}, 0.3, 2),
])  # fmt: skip
def test_keys_younger_than_a_run_have_what_was_done_before_them(given: dict[str, Any], reached: float, average: int) -> None:
    found = completed(given)
    assert (found["trust_region.reached"], found["baseline.average"]) == (reached, average)
    assert not found["solver.momentum"]
    assert found["solver.average"] == given.get("solver.average", 0) and found["stop.epochs"] == 10


def test_the_end_of_a_cosine_bends_the_trajectory(tmp_path: Path) -> None:
    keys: dict[str, Any] = {"method": "sgd", "baseline": {"schedule": "cosine"}}
    run(tmp_path / "run", 5, **keys)
    with pytest.raises(HandshakeError, match="stop.iterations: 5 -> 8"):
        on(tmp_path / "run", 8, **keys)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_stops_after_the_iteration_and_keeps_it(tmp_path: Path, number: int, capfd: pytest.CaptureFixture[str]) -> None:
    whole = run(tmp_path / "whole", 9)

    class Signalling(torch.nn.Module):
        """Sends the signal in the middle of an evaluation."""

        calls = 0

        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            Signalling.calls += 1
            if Signalling.calls == 60:
                os.kill(os.getpid(), number)
            return self.inner(x)

    before = signal.getsignal(number)
    first = run(tmp_path / "run", 9, module=Signalling(), run={"monitor": "plain"})
    assert signal.getsignal(number) == before
    assert first.status is Status.INTERRUPTED and first.exit_code == 75 and 0 < len(first.steps) < 9
    said = " ".join(capfd.readouterr().out.split())
    assert f"stopped by {signal.Signals(number).name}" in said
    assert f"{signal.Signals(number).name}: all ranks stop after this iteration" in said
    assert f'run={{"dir": "{tmp_path / "run"}", "resume": "auto"}}' in said
    assert read_run(tmp_path / "run").completion is None
    second = on(tmp_path / "run", 9, module=Signalling())
    assert torch.equal(second.theta, whole.theta)
    same_records(tmp_path / "whole", tmp_path / "run")


def test_without_checkpoints_a_signal_stops_unsaved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + 5))
    result = run(tmp_path / "run", 9, checkpoint={"every": "off"})
    assert result.status is Status.INTERRUPTED and result.exit_code == 75 and result.unsaved


def test_the_end_of_the_job_stops_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + 5))
    result = run(tmp_path / "run", 9)
    assert result.status is Status.INTERRUPTED and result.exit_code == 75 and len(result.steps) == 1


def broken(message: str) -> Callable[..., int]:
    def write(*args: Any) -> int:
        raise OSError(28, message)

    return write


@pytest.mark.fault(59)
def test_a_full_disk_costs_no_checkpoint_and_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path / "run", 4)
    honest, folder = files.write, tmp_path / "run" / "checkpoints"
    kept = files.sequences(folder)
    monkeypatch.setattr(files, "write", broken("No space left"))
    result = on(tmp_path / "run", 20, run={"monitor": "plain"})
    assert result.status is Status.ITERATIONS and result.unsaved and files.sequences(folder) == kept
    assert capfd.readouterr().out.count("No space left") == 1
    monkeypatch.setattr(files, "write", honest)
    second = on(tmp_path / "run", 22, run={"allow_changes": True})
    assert second.exit_code == 0 and not second.unsaved and torch.equal(second.theta, run(tmp_path / "whole", 22).theta)


def test_the_interval_is_youngs_and_dalys() -> None:
    assert best_interval(1e-6, 86400) == pytest.approx((2 * 1e-6 * 86400) ** 0.5, rel=1e-5)
    assert best_interval(60, 86400) == pytest.approx(3180.8, rel=2e-3)  # sqrt(2 C M) = 3220
    assert best_interval(10, 4) == 4


@pytest.mark.fault(64)
@pytest.mark.parametrize("place", ["record", "file"])
def test_another_format_version_is_refused(tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "FORMAT_VERSION", 7)
    run(tmp_path / "run", 2)
    monkeypatch.undo()
    folder = tmp_path / "run" / "checkpoints"
    if place == "file":  # a record that does not tell
        for path in folder.glob("*.json"):
            record = json.loads(path.read_text()) | {"format_version": 1}
            path.write_text(json.dumps(with_sum({name: value for name, value in record.items() if name != SUM})))
    with pytest.raises(DataError, match="format version"):
        files.read(folder, files.sequences(folder)[0])


def test_a_finished_run_whose_last_checkpoint_is_lost_stays_finished(tmp_path: Path) -> None:
    run(tmp_path / "run", 6)
    folder = tmp_path / "run" / "checkpoints"
    newest, older = files.sequences(folder)
    left = files.read(folder, older).facts["iteration"]  # 4, or less where the disk is slow
    flip(files.stem(folder, newest).with_suffix(".h5"))
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    for iterations in (6, 9):
        with pytest.raises(HandshakeError, match=f"is finished after iteration 6, its newest whole checkpoint is of iteration {left}: "):
            on(tmp_path / "run", iterations)
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert len(on(tmp_path / "run", 9, run={"allow_changes": True}).steps) == 9


def test_prolonging_keeps_the_completion_record_of_then(tmp_path: Path) -> None:
    run(tmp_path / "run", 4)
    before = (tmp_path / "run" / "completion.json").read_bytes()
    on(tmp_path / "run", 6)
    assert (tmp_path / "run" / "completion-until-1.json").read_bytes() == before


def test_a_run_that_used_its_time_has_nothing_left_to_do(tmp_path: Path) -> None:
    first = run(tmp_path / "run", 50, stop={"wall_time": 1e-3})
    second = on(tmp_path / "run", 50, stop={"wall_time": 1e-3})
    assert first.status is second.status is Status.WALL_TIME and len(second.steps) == len(first.steps) == 1


def test_subdomains_of_the_ranks_stay_what_was_asked_for(tmp_path: Path) -> None:
    """Their number is taken over, but not written into the settings: the next start compares them again."""
    run(tmp_path / "run", 3, solver={"subdomains": 0})
    text = (tmp_path / "run" / "config.toml").read_text()
    for iterations, subdomains in ((4, 0), (5, 1), (6, 0)):
        assert len(on(tmp_path / "run", iterations, solver={"subdomains": subdomains}).steps) == iterations
        if not subdomains:
            assert (tmp_path / "run" / "config.toml").read_text() == text.replace("iterations = 3", f"iterations = {iterations}")


def test_automatic_says_when_it_begins_anew(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run(tmp_path / "run", 3, checkpoint={"every": "off"})
    (tmp_path / "run" / "completion.json").unlink()
    on(tmp_path / "run", 3, run={"resume": "auto", "monitor": "plain"})
    assert "no checkpoint was kept there, this one begins anew" in capfd.readouterr().out


def test_a_bug_in_the_writing_thread_is_no_saved_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*args: Any) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(files, "write", bug)
    monkeypatch.setattr("threading.excepthook", lambda args: None)
    assert run(tmp_path / "run", 3).unsaved == "the writing thread broke off"


def test_a_failing_disk_is_not_tried_at_every_iteration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tries = []

    def full(*args: Any) -> int:
        tries.append(1)
        raise OSError(28, "No space left")

    monkeypatch.setattr(files, "write", full)
    run(tmp_path / "run", 30, checkpoint={"every": "2"})
    assert len(tries) == 2  # the first, and the one at the end


@pytest.mark.parametrize(("words", "message"), [
    (["--resume", ""], "needs the folder of a run"), (["--resume", "RUN", "--run.dir", "other"], "no --run.dir"),
    (["--resume", "nowhere"], "nowhere is no run directory"),
])  # fmt: skip
def test_wrong_words_beside_resume(words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path / "run", 2)
    assert main(["train", *(str(tmp_path / "run") if word == "RUN" else word for word in words)]) == 2
    assert message in capsys.readouterr().err


def test_the_command_line_wins_over_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.toml").write_text("[stop]\nepochs = 2\n")
    monkeypatch.setenv("APTS_RUN__DIR", str(tmp_path / "other"))
    monkeypatch.setenv("APTS_RUN__RESUME", "never")
    config = read_settings(None, [], str(tmp_path / "run")).config
    assert config.run.dir == str(tmp_path / "run") and config.run.resume == "must"


@pytest.mark.parametrize(("text", "wanted"), [
    ("auto", Every(auto=True)), ("off", Every()), ("20", Every(iterations=20)), ("90s", Every(seconds=90)), ("10min", Every(seconds=600)),
    ("2h", Every(seconds=7200)),
])  # fmt: skip
def test_how_often(text: str, wanted: Every) -> None:
    assert every(text) == wanted


@pytest.mark.parametrize("text", ["0", "-1", "often", "1.5h", "10 min", ""])
def test_how_often_in_other_words(text: str) -> None:
    with pytest.raises(ValueError, match="checkpoint.every must be auto, off"):
        every(text)


class Clock:
    """Checkpoints on a clock that the test moves."""

    def __init__(self, folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr("apts_mpi.checkpoints.time.monotonic", lambda: self.now)
        self.kept = Checkpoints(CheckpointConfig(every=text), SerialCommunicator(), folder, print)
        self.kept.begin(0)

    def due(self, seconds: float, done: int = 1) -> bool:
        self.now = 100.0 + seconds
        return self.kept.due(done)


def test_a_checkpoint_is_due_by_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    minutes = Clock(tmp_path, "2min", monkeypatch)
    assert not minutes.due(119) and minutes.due(120)
    auto = Clock(tmp_path, "auto", monkeypatch)
    assert not auto.due(9) and auto.due(11)
    count = Clock(tmp_path, "5", monkeypatch)
    assert not count.due(1e6, done=4) and count.due(0, done=5)
