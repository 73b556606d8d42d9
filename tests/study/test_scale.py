"""The scale command: what plan and status say, what is refused, and the estimates they rest on."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from study_cases import launcher, write_data, write_study

from apts_mpi.__main__ import main
from apts_mpi.contracts import CHECKS, LANE, TAIL
from apts_mpi.scale import estimate, make
from apts_mpi.scale.facts import facts
from apts_mpi.study.attempt import read_attempt
from apts_mpi.study.definition import read_study
from apts_mpi.study.plan import plan


@pytest.fixture
def study(tmp_path: Path) -> Path:
    write_data(tmp_path)
    return write_study(tmp_path)


def test_plan_says_runs_time_and_node_hours_and_starts_nothing(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scale", "plan", str(study)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("tiny: 30 runs into ")
    cells = [line.split() for line in lines[2:8]]
    assert [(c[0], c[2], c[3].rstrip("*"), c[5], c[6], c[7], c[8]) for c in cells] == [
        ("Sweep", "strong", "1", "2", "40", "20", "5"), ("SGD", "strong", "1", "1", "40", "10", "5"),
        ("Sweep", "strong+weak", "2", "2", "40", "20", "5"), ("SGD", "strong+weak", "2", "2", "40", "10", "5"),
        ("Sweep", "weak", "1", "1", "20", "10", "5"), ("SGD", "weak", "1", "1", "20", "5", "5"),
    ]  # fmt: skip
    assert "0 are done, 30 to make: at most " in lines[-2] and "node-hours" in lines[-2]
    assert lines[-1] == "estimates: 30 on an assumed machine: apts-mpi scale run calibrates first"
    assert not (study.parent / "out").exists()


def test_estimates_follow_what_was_measured(study: Path) -> None:
    found = read_study(study)
    runs = [run for run in plan(found) if run.repetition == 0 and run.ranks == 1 and run.method.slug == "sgd" and "weak" in run.scalings]
    assert make.run_study(found, runs, launcher(), False, lambda *lines: None) == 0
    attempt = read_attempt(runs[0])
    assert attempt is not None
    each = dict(zip([run.id for run in plan(found)], estimate.estimates(found, plan(found), facts(found, plan(found))), strict=True))
    alike = [run.id for run in plan(found) if run.case == runs[0].case]
    assert len(alike) == 5
    assert all((each[name].seconds, each[name].source) == (attempt.seconds, "measured") for name in alike)
    assert sum(value.source == "measured" for value in each.values()) == 5
    assert [make.state(run) for run in plan(found)].count("done") == 1


def test_an_assumed_machine_takes_longer_for_more_work(study: Path) -> None:
    found = read_study(study)
    known = facts(found, plan(found))
    assert (known.n_params, known.samples, known.sample_shape) == (8 * 4 + 4 + 4 * 2 + 2, 40, (8,))
    runs = {(run.method.slug, run.ranks, run.scalings): run for run in plan(found)}
    one, two = runs["sgd", 1, ("strong",)], runs["sgd", 2, ("strong", "weak")]
    weak = runs["sgd", 1, ("weak",)]
    work = [estimate.at_most(run, known, None) - estimate.START_UP for run in (one, two, weak)]
    arithmetic = 2 * 4 * 3 * 2 * known.n_params * 10 / estimate.ASSUMED_FLOPS  # epochs, minibatches, passes of 2 n operations, samples
    traffic = work[0] - arithmetic
    checks = (known.n_params + TAIL + LANE * len(CHECKS)) / (known.n_params + TAIL)  # two ranks check their sums
    assert traffic > 0 and work[1] == pytest.approx(arithmetic / 2 + checks * traffic)
    assert work[2] == pytest.approx(arithmetic / 2 + traffic)


@pytest.mark.parametrize(("words", "message"), [
    (["run", "STUDY", "--nodes", "3"], "no run of .* fits --nodes, --scaling and --repetition"),
    (["run", "STUDY", "--repetition", "5"], "no run of .* fits"),
    (["run", "nowhere.toml"], "nowhere.toml: cannot be read: No such file"),
    (["report", "STUDY"], "no run of .* is finished in .*; apts-mpi scale run"),
    (["submit", "STUDY", "--system", "nowhere"], "--system must be one of slurm, pbs"),
    (["submit", "STUDY", "--system", "pbs"], "pbs is no Slurm"),
    (["paint", "STUDY"], "invalid choice: 'paint'"),
])  # fmt: skip
def test_refusals(words: list[str], message: str, study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scale", *(str(study) if word == "STUDY" else word for word in words)]) == 2
    told = capsys.readouterr().err
    assert re.search(message, told), told


def test_status_counts(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scale", "status", str(study)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "0 of 30 done, 0 failed, 30 missing"


def test_status_tells_strong_and_weak_runs_apart(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["scale", "status", str(study)])
    cases = [line.split()[:6] for line in capsys.readouterr().out.splitlines()[:-1]]
    assert cases[0] == ["method", "network", "scaling", "P", "N", "samples"]
    assert len({tuple(case) for case in cases}) == len(cases) and ["Sweep", "-", "weak", "1", "1", "20"] in cases
