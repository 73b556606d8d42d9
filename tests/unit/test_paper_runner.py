"""Benchmarks of the paper: which runs are made, prolonged, kept and made again; processes are made up."""

from __future__ import annotations

import json
import math
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from paper import runner
from paper.cases import Case, adam, ours
from paper.curves import Curve
from paper.limits import Limits, Used
from paper.runner import Finding, Runner, note
from paper.wanted import Options, Wanted, wanted
from test_paper_pictures import run_directory

CASE, OTHER = ours("digits", 2, Limits(passes=40, reductions=60)), adam("digits", 500, 0.1, Limits(epochs=2))


def curve(iterations: int, status: str = "outer iterations done", source: str = "now") -> Curve:
    count = np.arange(1.0, iterations + 1)
    used, facts = Used(count / 3, count, 2 * count), {"source_sha256": source}
    return Curve(0, used, count, count, count, count, 1.0, count, 1.0, 7, 1.0, status, facts)


class Machine:
    """Folders and processes that are not there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        self.held, self.started, self.said = dict[Path, Finding](), list[tuple[str, int, bool]](), list[str]()
        self.code, self.broken, self.dead = 0, "", False
        self.options = Options(tmp_path, {"digits": "d"}, 1, say=self.said.append)
        monkeypatch.setattr(runner, "look", lambda run, options, source: self.held.get(run.folder, Finding(None, False, False, False)))
        monkeypatch.setattr(runner, "read_curve", lambda folder: self.held[folder].curve if folder in self.held else None)
        monkeypatch.setattr(Runner, "_start", self.start)
        monkeypatch.setattr(Runner, "_last_words", lambda self, run: "out of memory")

    def start(self, run: Wanted, going: Curve | None, kept: bool) -> int:
        until = runner.next_limits(run, going)
        iterations = math.ceil(min(until.iterations, 3 * until.epochs, until.passes, until.reductions / 2))
        self.started.append((run.name, iterations, kept))
        if self.broken and self.broken in run.name:
            return 4
        if self.dead:  # before it had written anything
            return self.code
        self.held[run.folder] = Finding(curve(iterations), True, True, True)
        return self.code

    def make(self, *cases: Case, **options: object) -> int:
        return Runner(replace(self.options, **options)).make(cases)  # type: ignore[arg-type]

    def hold(self, case: Case, found: Finding) -> None:
        self.held[self.options.runs / case.name / "seed-0"] = found


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    return Machine(monkeypatch, tmp_path)


def test_a_run_that_has_spent_its_budget_is_left_alone_and_prolonged_for_a_larger_one(machine: Machine) -> None:
    name, further = "digits/ours-N2 seed 0", replace(CASE, until=Limits(iterations=50))
    assert machine.make(CASE) == 0 and machine.started == [(name, 30, False)]
    assert machine.make(CASE) == 0 and len(machine.started) == 1 and machine.said[-1] == "1 of 1 runs are there, 0 to make"
    assert machine.make(further) == 0 and machine.started[1:] == [(name, 50, True)]
    machine.held.clear()
    machine.started.clear()
    assert machine.make(CASE, further) == 0 and machine.started == [(name, 30, False), (name, 50, True)]


def test_a_run_that_fails_is_told_and_the_others_go_on(machine: Machine) -> None:
    machine.broken = "ours"
    assert machine.make(CASE, OTHER, jobs=2) == 1
    assert any("FAILED with 4: out of memory" in words for words in machine.said) and len(machine.started) == 2
    machine.broken = ""
    assert machine.make(CASE, OTHER) == 0 and len(machine.started) == 3


def test_a_run_of_another_source_is_kept_unless_it_shall_be_made_again(machine: Machine) -> None:
    machine.hold(OTHER, Finding(curve(6), True, False, True))
    assert machine.make(OTHER) == 0 and machine.started == [] and "another source, kept" in machine.said[0]
    assert machine.make(OTHER, again=True) == 0 and machine.started == [("digits/adam-500-0.1 seed 0", 6, False)]


def test_what_is_half_there_is_gone_on_with_only_if_it_is_the_same(machine: Machine) -> None:
    states = ((True, True, True, True), (True, True, False, False), (True, False, True, False), (False, True, True, False))
    for mine, fresh, kept, going in states:
        machine.hold(CASE, Finding(curve(10, status=""), mine, fresh, kept))
        machine.started.clear()
        assert machine.make(CASE) == 0
        assert machine.started == [("digits/ours-N2 seed 0", 30, going)]


def test_a_run_that_ended_by_itself_is_enough_and_one_that_was_stopped_is_not(machine: Machine) -> None:
    machine.hold(CASE, Finding(curve(3, status="too many non-finite trials in a row"), True, True, True))
    assert machine.make(CASE) == 0 and machine.started == []
    machine.hold(CASE, Finding(curve(3, status="wall-time limit"), True, True, True))
    assert machine.make(CASE) == 0 and machine.started[0][1:] == (30, True)
    machine.held.clear()
    machine.code = 75
    assert machine.make(CASE) == 1 and "stopped, to go on later" in machine.said[-1]


def test_a_start_that_fails_is_not_hidden_by_the_completion_of_the_one_before(machine: Machine) -> None:
    machine.hold(CASE, Finding(curve(8), True, True, True))
    machine.code, machine.dead = 2, True
    assert machine.make(CASE) == 1 and len(machine.started) == 1 and "FAILED with 2" in machine.said[-1]
    machine.code, machine.dead = 3, False  # numbers that are none: the run ended by itself
    assert machine.make(OTHER) == 0


def test_how_many_runs_were_side_by_side_is_noted_beside_the_run(tmp_path: Path) -> None:
    folder, made = tmp_path / "case" / "seed-0", tmp_path / "case" / "seed-0.json"
    folder.mkdir(parents=True)
    alone, busy = ((2, True, 2), (1, False, 2), (4, False, 4), (1, True, 1)), ((0, False, 0), (1, False, 0), (1, True, 1), (0, True, 0))
    for jobs, afresh, noted in (*alone, *busy):
        note(folder, jobs, afresh=afresh)
        assert json.loads(made.read_text()) == {"jobs": noted}
    made.unlink()
    note(folder, 1, afresh=False)  # who knows how it was begun
    assert json.loads(made.read_text()) == {"jobs": 0}


def test_a_run_of_other_data_is_none_of_these(tmp_path: Path) -> None:
    run = wanted([CASE], Options(tmp_path, {"digits": str(tmp_path / "data")}, 1))[0]
    run_directory(tmp_path, CASE, seed=0)
    for data, mine in (("d", True), ("", True), ("e", False)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(runner, "fingerprint", lambda _, data=data: data)
            assert runner.look(run, Options(tmp_path, {"digits": ""}, 1), "s").mine is mine


def test_when_the_time_is_over_nothing_is_begun(machine: Machine) -> None:
    assert machine.make(CASE, deadline=time.monotonic() + 5) == 1 and machine.started == []
