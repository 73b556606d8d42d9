"""A study file: what it means, and what is wrong with a wrong one."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from study_cases import STUDY, write_study

from apts_mpi.study.definition import StudyError, read_study
from apts_mpi.study.plan import plan


def test_strong_keeps_the_problem_and_weak_the_share(tmp_path: Path) -> None:
    runs = plan(read_study(write_study(tmp_path)))
    assert len(runs) == 2 * 3 * 5  # methods, cells (strong and weak have P = 2 in common), repetitions
    subdomains = {"Sweep": (2, 2, 1), "SGD": (0, 0, 0)}  # SGD's iterates do not depend on them: one per rank
    cells = {(run.method.name, run.ranks, run.scalings): run.config for run in runs}
    for name, batches in (("Sweep", (20, 20, 10)), ("SGD", (10, 10, 5))):
        strong1, both, weak1 = (cells[name, p, s] for p, s in ((1, ("strong",)), (2, ("strong", "weak")), (1, ("weak",))))
        assert tuple(config.solver.subdomains for config in (strong1, both, weak1)) == subdomains[name]
        assert [config.data.limit for config in (strong1, both, weak1)] == [40, 40, 20]
        assert tuple(config.data.batch for config in (strong1, both, weak1)) == batches
    assert all(run.config.stop.target_accuracy == 75 and run.config.run.monitor == "none" for run in runs)


def test_methods_take_turns(tmp_path: Path) -> None:
    runs = plan(read_study(write_study(tmp_path)))
    per = len(runs) // 5
    for repetition in range(5):
        part = runs[repetition * per : (repetition + 1) * per]
        assert {run.repetition for run in part} == {repetition}
        assert Counter(run.method.name for run in part) == {"Sweep": 3, "SGD": 3}
        assert [run.method.name for run in part] == (["Sweep", "SGD"] if repetition % 2 == 0 else ["SGD", "Sweep"]) * 3
    assert len({run.id for run in runs}) == len(runs) == len({run.folder for run in runs})


def test_networks_multiply_and_repetitions_take_the_seeds_in_turn(tmp_path: Path) -> None:
    text = STUDY.replace("ranks = [1, 2]", "ranks = [2]\nseeds = [0, 7]") + '[[network]]\nname = "slow"\nlatency = 1e-3\nranks = 8\n'
    text = text.replace('name = "SGD"', 'name = "SGD"\nnetworks = [""]') + '[[network]]\nname = ""\n'
    runs = plan(read_study(write_study(tmp_path, text)))
    assert Counter((run.method.name, run.network.name) for run in runs) == {("Sweep", "slow"): 5, ("Sweep", ""): 5, ("SGD", ""): 5}
    assert {run.repetition: run.seed for run in runs} == {0: 0, 1: 7, 2: 0, 3: 7, 4: 0}
    slow = next(run.config.comm for run in runs if run.network.name)
    assert (slow.emulate_latency, slow.emulate_bandwidth, slow.emulate_ranks) == (1e-3, 0.0, 8)


def test_nodes() -> None:
    study = read_study(Path(__file__).parents[2] / "benchmarks/mnist.toml")
    assert [study.nodes(ranks) for ranks in (1, 2, 64)] == [1, 1, 1]


@pytest.mark.parametrize(("old", "new", "words"), [
    ("ranks = [1, 2]", "rank = [1, 2]", "the study has no key rank; did you mean ranks?"),
    ("ranks = [1, 2]", "ranks = [1, 1]", "ranks must be a list of different values, got [1, 1]"),
    ("ranks = [1, 2]", "ranks = 2", "ranks must be a list, got 2"),
    ("ranks = [1, 2]", "ranks = [0, 2]", "ranks and subdomains_per_rank must be positive"),
    ("ranks = [1, 2]", "repetitions = 4", "repetitions must be at least 5, got 4"),
    ("ranks = [1, 2]", "scaling = [\"sideways\"]", "scaling must hold strong, weak or both, got 'sideways'"),
    ("ranks = [1, 2]", "time_limit = nan", "time_limit must be a float, got nan"),
    ("samples_per_rank = 20", "", "weak scaling needs samples_per_rank"),
    ('name = "tiny"', 'name = "a/b"', "name must be a plain file name"),
    ('name = "tiny"', "", "name is missing"),
    ('name = "SGD"', 'name = "sweep"', "two entries [[method]] have the same name"),
    ('name = "SGD"', "", "method 2: name must begin"),
    ("batch_per_rank = 5", "", "method 'SGD' has data.batch for strong scaling; weak scaling needs its batch_per_rank"),
    ("baseline.lr = 0.1", "baseline.rate = 0.1", "method 'SGD': unknown key baseline.rate"),
    ("baseline.lr = 0.1", "baseline.lr = -1", "baseline.lr must be positive and finite, got -1"),
    ("baseline.lr = 0.1", "run.seed = 3", "run.seed is decided by the study itself"),
    ("baseline.lr = 0.1", "networks = [\"slow\"]", "names the network 'slow', which no [[network]] describes"),
    ("[settings]", "settings = 3\n[x]", "the study has no key x"),
    ("[settings]", "[[network]]\nname = \"slow\"\n[settings]", "an emulated network has a name and latency"),
    ("[settings]", "[settings", "is not TOML"),
])  # fmt: skip
def test_refusals_name_file_and_key(old: str, new: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    assert old in STUDY
    path.write_text(STUDY.replace(old, new, 1).format(folder=tmp_path), encoding="utf-8")
    with pytest.raises(StudyError) as caught:
        plan(read_study(path))
    assert words in str(caught.value) and str(path) in str(caught.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="nowhere.toml: cannot be read: No such file"):
        read_study(tmp_path / "nowhere.toml")


def test_a_program_has_a_subdomain_per_rank(tmp_path: Path) -> None:
    text = STUDY.replace('name = "SGD"', 'name = "SGD"\nprogram = "mine.py"')
    runs = [run for run in plan(read_study(write_study(tmp_path, text))) if run.method.program]
    assert {(run.ranks, run.config.solver.subdomains) for run in runs} == {(1, 0), (2, 0)}
    assert all(f"-N{run.ranks}-" in run.id for run in runs)
