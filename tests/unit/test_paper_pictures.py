"""Benchmarks of the paper: run directories become curves, and curves pictures and a page."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from paper import drawing, figures, report
from paper.cases import Case, ours
from paper.curves import Curve, folder_of, read_curve
from paper.limits import Limits, Used
from paper.published import read_published
from paper.store import Store

from apts_mpi import settings

COLUMNS = (
    "iteration,epoch,loss,accepted,radius,step_norm,loss_new,gradient_samples,value_samples,reductions,status,time,passes,accuracy,"
    "seconds_test"
)
ROWS = ("0,0.5,2.0,1,1.0,0.9,1.5,300,50,2,running,1.0,3.0,nan,0.25", "1,1.0,1.4,1,2.0,2.0,nan,300,50,2,running,2.5,6.0,91.5,0.25")
LIMITS = Limits(iterations=2)
FACTS: dict[str, Any] = {"cpu": "a", "devices": ["cpu"], "ranks": 2, "threads_per_rank": 1, "jobs": 1}


def run_directory(
    runs: Path, case: Case, *, rows: tuple[str, ...] = ROWS, options: tuple[tuple[str, str], ...] = (), seed: int = 1000, data: str = "d",
) -> Path:  # fmt: skip
    folder = folder_of(runs, case, seed)
    folder.mkdir(parents=True)
    words = [(case.words[index][2:], case.words[index + 1]) for index in range(0, len(case.words), 2)]
    given = settings.from_options([*words, ("run.seed", str(seed)), *options])
    (folder / "config.toml").write_text(settings.to_toml(settings.resolve(given).config))
    facts = {"format": "apts-mpi run", "format_version": 1, "seed": seed, "n_params": 7, "source_sha256": "s", "folder": "/secret"}
    facts["data_fingerprint"] = data
    (folder / "provenance.json").write_text(json.dumps(facts))
    (folder / "records.csv").write_text("\n".join([COLUMNS, *rows]) + "\n")
    return folder


def test_a_curve_is_what_the_records_say(tmp_path: Path) -> None:
    case = ours("digits", 2, LIMITS)
    curve = read_curve(run_directory(tmp_path, case))
    assert curve is not None and curve.seed == 1000 and curve.status == "" and not curve.enough(LIMITS)
    figures_of_it = {"accuracy": 91.5, "iterations": 2, "epochs": 1, "passes": 6, "values": 1, "reductions": 4, "seconds": 2}
    assert curve.at(2) == {**figures_of_it, "bytes": 4 * 7 * 4}
    assert math.isnan(curve.at(1)["accuracy"]) and curve.farthest == 1.0 and curve.wall == 2.5
    assert [list(part) for part in curve.losses("passes")] == [[0, 3], [2.0, 1.4]]
    assert [list(part) for part in curve.head(Limits(iterations=1)).losses("seconds")] == [[0, 0.75], [2.0, 1.4]]
    assert [list(part) for part in curve.accuracies("reductions")] == [[4], [91.5]]
    assert curve.cut(Limits(passes=2)) == {} and "/secret" not in json.dumps(curve.facts)


def test_runs_that_are_none_or_of_other_settings_are_left_out(tmp_path: Path) -> None:
    case, said = ours("digits", 2, LIMITS), list[str]()
    folder = run_directory(tmp_path, case, options=(("local.passes", "7"),))
    assert Store(tmp_path, say=said.append).curves(case) == [] and "local.passes = 7, not" in said[0]
    (folder / "records.csv").write_text(COLUMNS + "\n")
    assert read_curve(folder) is None and read_curve(tmp_path / "none") is None


def test_other_data_and_other_seeds_are_left_out_once_for_all_tables(tmp_path: Path) -> None:
    case, said = ours("digits", 2, LIMITS), list[str]()
    for seed, data in ((0, "d"), (1000, "other"), (2000, "d"), (3000, "d"), (7, "d")):
        run_directory(tmp_path, case, seed=seed, data=data)
    assert [curve.seed for curve in Store(tmp_path, say=said.append, seeds=3).curves(case)] == [0, 2000]
    assert len(said) == 1 and "digits/ours-N2/seed-1000 was made with other data" in said[0]
    assert [curve.seed for curve in Store(tmp_path, say=said.append, seeds=3).curves(replace(case, seeds=1))] == [0]


def test_seconds_are_those_of_runs_alone(tmp_path: Path) -> None:
    case = ours("digits", 2, LIMITS)
    folder = run_directory(tmp_path, case, seed=0)
    assert [curve.facts["jobs"] for curve in Store(tmp_path).curves(case)] == [None]
    folder.with_name("seed-0.json").write_text('{"jobs": 2}')
    assert [curve.facts["jobs"] for curve in Store(tmp_path).curves(case)] == [2]


def test_a_line_says_how_many_of_its_seeds_there_are_and_whether_they_are_finished(tmp_path: Path) -> None:
    case, style = ours("digits", 2, LIMITS), figures.MINE
    folder = run_directory(tmp_path, case, seed=0)
    line = drawing.Line.of("ours", style, case, Store(tmp_path, seeds=3))
    assert line.label + line.mark == "ours (1 of 3 seeds, unfinished)" and line.machines == {("", "", "", "", "")}
    curve = read_curve(folder)
    assert curve is not None
    done = [replace(curve, status="outer iterations done", facts=FACTS)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "curves", lambda self, case: done)
        assert drawing.Line.of("ours", style, case, Store(tmp_path, seeds=3)).mark == " (1 of 3 seeds)"
        line = drawing.Line.of("ours", style, case, Store(tmp_path, seeds=1))
    assert line.mark == "" and line.machines == {("a", "['cpu']", "2", "1", "1")}


@pytest.mark.parametrize(("facts", "words"), [
    ([{}, {}], ""), ([{"jobs": 2}, {"jobs": 2}], ", 2 runs at a time"), ([{}, {"jobs": 2}], None), ([{}, {"cpu": "b"}], None),
    ([{}, {"ranks": 1}], None), ([{}, {"devices": ["cuda"]}], None), ([{}, {"threads_per_rank": 2}], None),
    ([{}, {}, {"jobs": None}], "\n(lines made otherwise left out)"), ([{}, {"jobs": 2}, {"jobs": 3}, {}, {"jobs": 4}], None),
    ([{"jobs": None}], None), ([{"cpu": None}], None), ([], None),
])  # fmt: skip
def test_seconds_are_compared_under_the_same_conditions_alone(facts: list[dict[str, Any]], words: str | None, tmp_path: Path) -> None:
    curve = Synthetic(tmp_path).curves(ours("digits", 2, LIMITS))[0]
    lines = [drawing.Line("x", [replace(curve, facts=FACTS | other)], figures.MINE) for other in facts]
    axes: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing, "_finish", lambda figure, *rest: axes.extend(panel.get_xlabel() for panel in figure.axes) or tmp_path)
        drawing.work(ours("digits", 2, LIMITS).problem, {2: lines}, "accuracy", 6, tmp_path / "x")
    assert [label for label in axes if label.startswith("time, s")] == ([] if words is None else [f"time, s{words}"])


class Synthetic(Store):
    """Curves that rise and fall as they should, a little another for each seed."""

    def curves(self, case: Case) -> list[Curve]:
        count, quick = 60 * case.problem.batches, "ours" in case.name
        epochs = np.arange(1.0, count + 1) / case.problem.batches
        return [
            Curve(
                seed, Used(epochs, 3 * epochs, 2 * np.arange(1.0, count + 1)), epochs, 1e6 * epochs, epochs, 1.47 + 1 / (1 + epochs), 1.5,
                50 + 40 * (1 - np.exp(-epochs * (2 if quick else 1))) + seed / 1000, 1.0, 7, 1.0, "epochs done", {},
            )
            for seed in (0, 1000)
        ]  # fmt: skip


def test_every_picture_of_a_figure_is_drawn_and_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(figures.FIGURES, "figure1", ("mnist-full-sigmoid",))
    published, names = tmp_path / "published.csv", ("apts_d_mnist_60000_2_o1", "apts_d_cifar10_50000_2_o1")
    lines = [f"{name},{epoch},1.5,2.1,1.8,40,60,{50 + epoch}" for name in names for epoch in (0, 1)]
    published.write_text("\n".join(["series,epoch,loss_min,loss_max,loss_mean,acc_min,acc_max,acc_mean", *lines]) + "\n")
    assert list(read_published(published)) == ["apts_d_mnist_60000_2_o1"]  # the other ones are copies of Adam's
    assert read_published(tmp_path / "none.csv") == {}
    paths = figures.draw("figure1", 6, Synthetic(tmp_path), published, tmp_path / "out")
    assert len(paths) == 4 and all(path.read_bytes()[:4] == b"\x89PNG" and path.stat().st_size <= 150_000 for path in paths)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(path.name for path in paths)
    again = figures.draw("figure1", 6, Synthetic(tmp_path), tmp_path / "none.csv", tmp_path / "out")
    assert set(again) == set(paths), "what was drawn beside the published curves stays"
    alone = figures.draw("figure1", 6, Synthetic(tmp_path), tmp_path / "none.csv", tmp_path / "alone")
    assert {path.name for path in paths} - {path.name for path in alone} == {"figure1-mnist-full-sigmoid-sum.png"}


def test_a_figure_without_runs_is_no_picture_and_no_error(tmp_path: Path) -> None:
    assert figures.draw("figure1", 6, Store(tmp_path), tmp_path / "none.csv", tmp_path) == []
    said: list[str] = []
    known = report.Context(Store(tmp_path), 3, 25, tmp_path / "none.csv", tmp_path / "results")
    assert report.make(tuple(report.TABLES), known, True, said.append) == [f"no verdict: {name}: no runs yet" for name in report.JUDGED]
    assert (tmp_path / "results" / "report.md").read_text().startswith("# The paper")


def test_the_report_has_every_table_and_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "draw", lambda name, *_: [tmp_path / f"{name}-a.png", tmp_path / f"{name}-b.png"])
    said: list[str] = []
    known = report.Context(Synthetic(tmp_path), 2, 6, tmp_path / "none.csv", tmp_path)
    fallen = report.make((*(name for name in report.TABLES if name != "beyond"), *figures.FIGURES), known, True, said.append)
    text = (tmp_path / "report.md").read_text()
    assert text.count("![") == 4 and "beside the published curves" in "\n".join(said) and any("MNIST" in words for words in fallen)
    assert [title for title in ("## The bars", "## No tuning", "## To the target", "## Figure 1") if title not in text] == []
