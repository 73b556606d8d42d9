"""Runs of a study: made once, kept, tried again, ended in time; and the points that come of them."""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from study_cases import launcher, write_data, write_study

from apts_mpi.__main__ import main
from apts_mpi.rundir import read_run
from apts_mpi.scale import make, results
from apts_mpi.study import attempt, collect, execute
from apts_mpi.study.definition import StudyError, read_study
from apts_mpi.study.plan import Run, plan
from apts_mpi.study.points import from_json, read_points, to_json


def one_rank(path: Path) -> list[Run]:
    return [run for run in plan(read_study(path)) if run.ranks == 1 and run.repetition == 0]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with its runs on one rank and one repetition made."""
    folder = tmp_path_factory.mktemp("made")
    write_data(folder)
    path = write_study(folder)
    lines: list[str] = []
    study = read_study(path)
    assert execute.Executor(study, launcher(), lines.append).make(one_rank(path)) == []
    assert lines[0] == "0 of 4 runs are there, 4 to make" and len(lines) == 5 and "FAILED" not in "".join(lines)
    return path


def test_finished_runs_are_kept(made: Path) -> None:
    runs = one_rank(made)
    before = [(run.folder / "completion.json").stat().st_mtime_ns for run in runs]
    lines: list[str] = []
    (runs[1].folder / "completion.json").unlink()
    assert execute.Executor(read_study(made), launcher(), lines.append).make(runs) == []
    assert lines[0] == "3 of 4 runs are there, 1 to make"
    after = [(run.folder / "completion.json").stat().st_mtime_ns for run in runs]
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False, True, True]


def test_points_say_what_the_records_say(made: Path) -> None:
    study = read_study(made)
    points = collect.collect(study, plan(study))
    assert (len(points.points), points.planned, points.failed) == (4, 30, ())
    for point, run in zip(points.points, one_rank(made), strict=True):
        record = read_run(run.folder)
        columns, done = record.columns, record.completion
        assert done is not None and (point.run, point.ranks, point.samples) == (run.id, 1, run.config.data.limit)
        assert (point.passes, point.bytes, point.iterations, point.accuracy) == (done.passes, done.bytes, done.iterations, done.accuracy)
        spent = sum(columns[name].sum() for name in columns if name.startswith("seconds_")) - columns["seconds_test"].sum()
        assert point.run_seconds == pytest.approx(spent - columns["seconds_io"].sum())
        assert sum(point.phases.values()) * done.iterations == pytest.approx(done.seconds, rel=0.05)
        reached = columns["accuracy"] >= 75
        assert math.isnan(point.target_iterations) != reached.any()
        if reached.any():
            assert point.target_iterations == reached.argmax() + 1 and point.target_passes == columns["passes"][reached.argmax()]
    text = to_json(points)
    assert to_json(from_json(text)) == text and [p.run for p in from_json(text).points] == [p.run for p in points.points]


def test_a_run_that_fails_is_told_and_tried_again(made: Path, tmp_path: Path) -> None:
    runs = [replace(run, config=replace(run.config, run=replace(run.config.run, dir=str(tmp_path / run.id)))) for run in one_rank(made)[:1]]
    study, lines = read_study(made), list[str]()
    failing = f"{launcher().split()[0]} -c 'import sys; print(\"no such thing\"); sys.exit(7)'"
    assert execute.Executor(study, failing, lines.append).make(runs) == runs
    assert "FAILED, exit code 7: no such thing" in lines[-1]
    assert make.state(runs[0]) == "failed" and collect.collect(study, runs).failed == (runs[0].id,)
    assert execute.Executor(study, launcher(), lines.append).make(runs) == [] and make.state(runs[0]) == "done"


def test_lines_tell_the_runs_of_a_repetition_apart(made: Path) -> None:
    runs = [run for run in plan(read_study(made)) if run.repetition == 0]
    lines = [execute.outcome_line(run, attempt.Attempt(run.id, 7, 1.0, 1.0, False, "", "", "")).split(" s ")[0] for run in runs]
    assert len(set(lines)) == len(runs) and all(line.isprintable() for line in lines)
    assert any("Sweep" in line and " strong " in line and " P=1 " in line and " N=2 " in line for line in lines)
    assert any("Sweep" in line and " weak " in line and " P=1 " in line and " N=1 " in line for line in lines)


@pytest.mark.parametrize(("seconds", "log", "words"), [
    (0.0, "of an earlier try", "  not begun"), (0.1, "", "  stopped before its end"),
    (0.1, "saved\n", "  stopped before its end: saved"),
])  # fmt: skip
def test_a_run_that_was_told_to_end_says_how_far_it_came(made: Path, tmp_path: Path, seconds: float, log: str, words: str) -> None:
    run = one_rank(made)[0]
    run = replace(run, config=replace(run.config, run=replace(run.config.run, dir=str(tmp_path / run.id))))
    (tmp_path / (run.id + ".log")).write_text(log)
    assert execute.outcome_line(run, attempt.Attempt(run.id, attempt.AGAIN, seconds, 1.0, False, "", "", "")).endswith(words)


def test_a_run_that_takes_too_long_is_ended(made: Path, tmp_path: Path) -> None:
    runs = [replace(run, config=replace(run.config, run=replace(run.config.run, dir=str(tmp_path / run.id)))) for run in one_rank(made)[:1]]
    asleep = f"{launcher().split()[0]} -c 'import os, time; open(\"{tmp_path}/pid\", \"w\").write(str(os.getpid())); time.sleep(100)'"
    lines: list[str] = []
    start = time.monotonic()
    assert execute.Executor(replace(read_study(made), time_limit=1.5), asleep, lines.append).make(runs) == runs
    assert time.monotonic() - start < 60 and "FAILED, took too long" in lines[-1]
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text()}").exists()


def test_more_threads_than_cores_are_refused_or_marked(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execute, "cores", lambda: 1)
    study = replace(read_study(made), oversubscribe=False)
    with pytest.raises(StudyError, match="2 ranks of 1 threads are more than the 1 cores here"):
        execute.check_cores(study, plan(study))
    execute.check_cores(study, one_rank(made))
    execute.check_cores(replace(study, oversubscribe=True), plan(study))
    execute.check_cores(replace(study, ranks_per_node=1), plan(study))
    assert execute.environment(study, 2)["MPIR_CVAR_ENABLE_HEAVY_YIELD"] == "1"


def test_what_starts_the_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert execute.start_words(4, 2, "", {"SLURM_JOB_ID": "7"}) == ["srun", "--kill-on-bad-exit=1", "-n", "4", "-N", "2"]
    assert execute.start_words(4, 2, "srun --cpu-bind='cores'", {}) == ["srun", "--cpu-bind=cores", "-n", "4", "-N", "2"]
    assert execute.start_words(4, 2, "", {})[1:] == ["-n", "4"]
    monkeypatch.setattr(execute.sys, "executable", "/nowhere/python")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(StudyError, match="there is no mpiexec beside this python nor on PATH"):
        execute.start_words(4, 2, "", {})


def test_noise_is_noticed_by_host() -> None:
    seen = [(1, "a"), (9, "a"), (9, "a"), (2, "b")]
    attempts = [attempt.Attempt(str(i), 0, 1.0, rate, False, host, "", "") for i, (rate, host) in enumerate(seen)]
    assert collect.usual_bandwidth(attempts) == {"a": 9, "b": 2}


def test_medians_and_their_interval() -> None:
    low, middle, high = collect.median_interval(np.arange(101.0))
    assert middle == 50 and 38 <= low <= 41 and 59 <= high <= 62
    assert collect.median_interval(np.array([3.0, 1.0])) == (1.0, 2.0, 3.0)


def test_collecting_nothing_and_a_damaged_file(tmp_path: Path) -> None:
    write_data(tmp_path)
    path = write_study(tmp_path)
    with pytest.raises(StudyError, match="no run of .* is finished"):
        results.collect_study(read_study(path))
    with pytest.raises(FileNotFoundError, match="scale collect"):
        read_points(tmp_path)
    for text in ("{", "[]", "{}", json.dumps({"format": "apts-mpi study", "format_version": 1})):
        with pytest.raises(ValueError, match="points.json"):
            from_json(text)


def test_a_study_that_cannot_work_is_refused_before_anything_starts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_data(tmp_path)
    for key, value, words in (
        ("samples", "400", "400 samples are wanted on 1 ranks"), ("data.path", '"nowhere"', "no data set at nowhere"),
        ("method", '"local-sgd"', "method 'SGD' on 1 ranks: baseline.period = 8 is more than the 4 minibatches"),
    ):  # fmt: skip
        assert main(["scale", "run", str(write_study(tmp_path, **{key: value}))]) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_speaks_against_the_cost_model_is_known_once_runs_are_collected(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = replace(read_study(made), folder=str(made.parent / "elsewhere"))
    assert results.distrust(study) == []
    study = read_study(made)
    points = results.collect_study(study)
    assert results.distrust(study) == []  # nothing was calibrated, so nothing is predicted
    monkeypatch.setattr(results, "predictions", lambda study, points: {p.run: {"seconds": 2 * p.iteration_seconds} for p in points.points})
    [told] = results.distrust(study)
    assert told.startswith(f"WARNING: The cost model misses {len(points.points)} of {len(points.points)} cases measured here")
