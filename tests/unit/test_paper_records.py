"""Benchmarks of the paper: records of runs show what the run directories show, and stand for them where these are absent."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from paper import bars, beyond, identity, records, report, targets, tuning, variants
from paper.cases import Case, adam, ours, paper
from paper.curves import FACTS, Curve, folder_of, read_curve
from paper.limits import Limits, Used
from paper.records import keep, path_of, read_record
from paper.runner import Runner, look
from paper.store import Store
from paper.table import Table, bare
from paper.wanted import Options, wanted
from test_paper_pictures import run_directory

DONE = '{"format": "apts-mpi completion", "format_version": 1, "status": "outer iterations done"}'
BUDGET, SAMPLES = Limits(passes=24, reductions=108), 60000
CASE, STEPS = ours("mnist-10k", 8, BUDGET), adam("mnist-10k", 1000, 1e-3, Limits(epochs=8), seeds=1)


def lines(count: int, batches: int, every: int = 1, seed: int = 0, rate: float = 20.0) -> tuple[str, ...]:
    """Rows of records.csv of a run with uneven iterations."""
    random, total, found = np.random.default_rng(seed), 0, list[str]()
    for k in range(count):
        gradients, values = int(random.integers(32000, 33000)), int(random.integers(10000, 10600))
        total += gradients
        tested = f"{100 - 30 * math.exp(-(k + 1) / rate):.2f}" if (k + 1) % every == 0 else "nan"
        loss, after = (2.3 * math.exp(-step / rate) * float(random.uniform(0.9, 1.1)) for step in (k, k + 1))
        found.append(f"{k},{(k + 1) / batches!r},{loss!r},1,2.0,{random.uniform(1, 2)!r},{after!r},{gradients},{values},2,running,"
                     f"{3.1 * (k + 1) + random.uniform(0, 1)!r},{total / SAMPLES!r},{tested},0.1875")  # fmt: skip
    return tuple(found)


def made(runs: Path, case: Case, rows: tuple[str, ...], seed: int = 0, **more: str) -> Path:
    folder = run_directory(runs, case, rows=rows, seed=seed, **more)  # type: ignore[arg-type]
    (folder / "provenance.json").write_text(
        json.dumps(json.loads((folder / "provenance.json").read_text()) | {"ranks": 1, "versions": {"torch": "2"}, "hosts": ["secret"]})
    )
    folder.with_name(f"{folder.name}.json").write_text('{"jobs": 1}')
    return folder


def done(curve: Curve | None) -> Curve:
    assert curve is not None
    return replace(curve, status="outer iterations done")


def record(folder: Path, kept: Path, *untils: Limits, worth: dict[str, float] | None = None) -> Path:
    """Write the record of a run directory as if its run had ended."""
    path = path_of(kept, "/".join(folder.parts[-3:-1]), folder.name)
    keep(path, done(read_curve(folder)), identity.found(folder), untils, lambda: worth or {})
    return path


LIMITS = (BUDGET, Limits(passes=7.25), Limits(epochs=5), Limits(iterations=13), Limits(reductions=45), Limits(passes=1, epochs=2))


@pytest.mark.parametrize(("case", "rows"), [
    (CASE, lines(60, 6)), (STEPS, lines(480, 60, every=10)), (STEPS, lines(181, 12, every=2)), (CASE, lines(1, 1)),
])  # fmt: skip
def test_a_record_gives_the_figures_of_its_run_directory(tmp_path: Path, case: Case, rows: tuple[str, ...]) -> None:
    folder = made(tmp_path / "runs", case, rows)
    curve, found = done(read_curve(folder)), read_record(record(folder, tmp_path / "kept", *LIMITS))
    back = found.curve
    for name in ("epochs", "passes", "reductions"):
        assert np.array_equal(curve.progress(name), back.progress(name)), name
    assert all(until.within(curve.used) == until.within(back.used) for until in LIMITS)
    for passes in curve.used.passes:  # budgets that are used up to the last bit
        assert Limits(passes=float(passes)).within(curve.used) == Limits(passes=float(passes)).within(back.used)
    assert all(back.cut(until) == pytest.approx(curve.cut(until), rel=1e-5, nan_ok=True) for until in LIMITS)
    assert all(back.reached(target) == pytest.approx(curve.reached(target), rel=1e-5) for target in (71, 90, 97, 99.9))
    for across in ("epochs", "passes", "bytes", "seconds", "iterations"):
        x, y = curve.accuracies(across)
        assert np.array_equal(y, back.accuracies(across)[1]) and np.allclose(x, back.accuracies(across)[0], rtol=1e-5, atol=0)
        known = np.isfinite(back.loss)
        assert known.all() == (len(rows) < 100) and np.isfinite(back.loss_end)
        assert np.allclose(curve.loss[known], back.losses(across)[1][:-1], rtol=1e-5, atol=0)
    assert (back.facts, back.status, back.seed, back.n_params) == (curve.facts, curve.status, 0, 7)
    assert back.farthest == pytest.approx(curve.farthest, rel=1e-11) and found.settings == identity.found(folder)
    assert all(math.isfinite(back.head(until).losses("passes")[1][-1]) for until in found.untils)
    assert found.untils == tuple(sorted({until for until in LIMITS if curve.enough(until)}, key=str))
    words = [*case.words, "--run.seed", "0"]
    assert identity.differences(found.settings, words) == [] and identity.differences(found.settings, [*words, "--data.limit", "9"])


@pytest.mark.parametrize(("case", "rows", "most"), [(CASE, lines(60, 6), 6000), (STEPS, lines(480, 60, every=10), 14000)])
def test_a_record_is_small_and_names_no_place(tmp_path: Path, case: Case, rows: tuple[str, ...], most: int) -> None:
    path = record(made(tmp_path / "runs", case, rows), tmp_path / "kept", case.until)
    text = path.read_text()
    assert len(text) <= most and "secret" not in text and str(tmp_path) not in text and text.endswith("}\n")
    told = json.loads(text)
    assert list(told) == sorted(told) and text.count("\n") == len(text.splitlines()) < 100 and set(told["facts"]) == {*FACTS, "jobs"}


def test_equal_steps_take_a_few_bytes_however_many_they_are(tmp_path: Path) -> None:
    count = np.arange(1.0, 48001)
    curve = Curve(0, Used(count / 16, count / 16, count), 0 * count, 4.0 * count, count, 1 / count, math.nan, np.full(48000, math.nan),
                  math.nan, 1, 48000.0, "epochs done", dict.fromkeys(FACTS), 1024.0)  # fmt: skip
    path = tmp_path / "seed-0.json"
    assert keep(path, curve, {}, [Limits(epochs=3000)], dict) and path.stat().st_size < 4000
    back = read_record(path).curve
    assert np.array_equal(back.used.passes, curve.used.passes) and np.allclose(back.seconds, count)
    assert back.loss[-1] == pytest.approx(1 / 48000, rel=1e-5)
    odd = replace(curve, used=replace(curve.used, epochs=np.sqrt(count)))  # no whole numbers of anything
    assert keep(path, replace(odd, status="converged"), {}, [], dict)
    assert np.allclose(read_record(path).curve.used.epochs, np.sqrt(count), rtol=0, atol=1e-10)


def everything(store: Store, results: Path, seeds: int) -> list[Table]:
    known = report.Context(store, seeds, 4, results / "none.csv", results)
    report.make((*report.TABLES, "figure1"), known, True, lambda _: None)
    return report.tables(tuple(report.TABLES), known)


def test_the_report_from_records_is_that_from_run_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, poisson = tuning.PLACES[0], next(place for place in beyond.PLACES if place.problem == "poisson")
    monkeypatch.setattr(bars, "BARS", bars.BARS[:2])
    monkeypatch.setattr(variants, "PLACES", variants.PLACES[:1])
    monkeypatch.setattr(beyond, "worth", lambda folder: {"test_loss": 0.25, "error": 0.5} if folder.is_dir() else {})
    race, empty = targets.RACES[0], Store(tmp_path / "runs")
    cases = [bars.BARS[0].case, *(case for _, case in place.variants()), variants.ABLATION[1].case(variants.PLACES[0])]
    cases += [*race.search(1000, empty).cases[:3], *race.search(10000, empty).cases[:2], ours("mnist-10k-sigmoid", 2, Limits(epochs=4))]
    cases.append(paper("mnist-10k-sigmoid", 2, "o1", "sum", Limits(epochs=4)))
    for number, case in enumerate(cases):
        count = 180 if "adam" in case.name else 60
        rows = lines(480, 60, 10, number, 60) if "1000-" in case.name else lines(count, 6, 1, number, 8 + number)
        for seed in (0, 1000)[: case.seeds or 2]:
            made(tmp_path / "runs", case, rows, seed)
    rows = lines(200, 1, 100)
    over = next(number for number, row in enumerate(rows) if float(row.split(",")[12]) > 48)
    for case in poisson.ours()[:2]:
        made(tmp_path / "runs", case, rows[: over + 1], 0)
    monkeypatch.setattr("paper.store.read_curve", lambda folder: done(curve) if (curve := read_curve(folder)) else None)
    short = replace(poisson, passes=48)
    monkeypatch.setattr(beyond, "tables", lambda store, places=(short,), make=beyond.tables: make(store, places))
    from_runs = everything(Store(tmp_path / "runs", seeds=2), tmp_path / "first", 2)
    untils: dict[str, list[Limits]] = {}
    for case in [*cases, *bars.cases(), *tuning.cases((place,)), *targets.finals(Store(tmp_path / "runs"), (race,)), *short.ours()]:
        untils.setdefault(case.name, []).append(case.until)
    for folder in (tmp_path / "runs").glob("*/*/seed-*/"):
        record(folder, tmp_path / "kept", *untils["/".join(folder.parts[-3:-1])], worth={"test_loss": 0.25, "error": 0.5})
    shutil.rmtree(tmp_path / "runs")
    from_records = everything(Store(tmp_path / "runs", seeds=2, records=tmp_path / "kept"), tmp_path / "second", 2)
    assert {table.name for table in from_runs} >= {"bars", "tuning", "tuning-rows", "adam", "ablation", "beyond"}
    assert [table.markdown() for table in from_records] == [table.markdown() for table in from_runs]
    assert any(row["error"] == 0.5 for row in from_records[-1].rows)
    for one, other in zip(from_runs, from_records, strict=True):
        assert one.plain()["made_by"] == other.plain()["made_by"] != []
        for row, same in zip(one.rows, other.rows, strict=True):
            assert same.pop("seconds", math.nan) == pytest.approx(row.pop("seconds", math.nan), rel=1e-5, nan_ok=True)
            assert bare({**same, "seconds_shown": ""}) == bare({**row, "seconds_shown": ""})  # six digits, rounded once more
    first, second = (sorted(path.name for path in (tmp_path / name).glob("*.png")) for name in ("first", "second"))
    assert first == second != []


def test_the_run_directory_comes_before_the_record_if_it_is_the_run_and_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, kept, said = made(tmp_path / "runs", CASE, lines(60, 6)), tmp_path / "kept", list[str]()

    def curves() -> list[Curve]:
        return Store(tmp_path / "runs", say=said.append, records=kept).curves(CASE)

    assert [curve.worth for curve in curves()] == [None]
    path = record(folder, kept, BUDGET)
    assert [curve.worth for curve in curves()] == [{}]  # the run in the folder has not ended
    path.write_text("{")
    assert [curve.worth for curve in curves()] == [None] and "no record, or damaged" in said.pop()
    record(folder, kept, BUDGET)
    with monkeypatch.context() as patch:
        patch.setattr("paper.store.read_curve", lambda folder: done(read_curve(folder)))
        assert [curve.worth for curve in curves()] == [None] and said == []
    shutil.rmtree(folder)
    made(tmp_path / "runs", CASE, lines(60, 6), options=(("local.passes", "7"),))  # type: ignore[arg-type]
    assert [curve.worth for curve in curves()] == [{}] and "local.passes = 7" in said[0] and len(said) == 1


def test_records_of_other_settings_or_data_are_left_out_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    kept, said = tmp_path / "kept", list[str]()
    for seed, data in ((0, "d"), (1000, "d"), (2000, "other"), (3000, "d")):
        record(made(tmp_path / "runs", CASE, lines(60, 6), seed, data=data), kept, BUDGET)
    changed = kept / CASE.name / "seed-1000.json"
    changed.write_text(changed.read_text().replace('"local.passes": 2', '"local.passes": 7'))
    good, broken = (kept / CASE.name / f"seed-{seed}.json" for seed in (0, 3000))
    whole, text = good.read_text(), broken.read_text()
    shutil.rmtree(tmp_path / "runs")
    damages: tuple[Callable[[str], str], ...] = (
        lambda text: text[:300], lambda text: "<<<<<<< HEAD\n" + text, lambda text: text.replace("[60, 1]", "[59, 1]", 1), lambda _: "[]",
        lambda text: text.replace('"seed": 3000', '"seed": 0', 1), lambda text: text.replace('"unit": 60000', '"unit": 0', 1),
        lambda text: text.replace("[60, 2]", "[60, -2]"), lambda text: text.replace('"format_version": 1', '"format_version": 2'),
        lambda text: text.replace("[60, 2]", "[60000000000, 2]"), lambda text: text.replace("local.passes", "local.no_such"),
    )  # fmt: skip
    for damage in damages:
        broken.write_text(damage(text))
        said.clear()
        assert [curve.seed for curve in Store(tmp_path / "runs", say=said.append, records=kept).curves(CASE)] == [0], damage(text)[:400]
        assert len(said) == 3 and f"{CASE.name}/seed-3000.json is no record, or damaged" in " ".join(said)
        assert any("the record mnist-10k/ours-N8/seed-1000 was made with local.passes = 7, not 2" in words for words in said)
        assert any("seed-2000 was made with other data" in words for words in said)
    assert good.read_text() == whole


def test_a_record_is_written_once_and_not_over_one_that_goes_further(tmp_path: Path) -> None:
    folder, path, asked = made(tmp_path, CASE, lines(60, 6)), tmp_path / "seed-0.json", list[int]()
    curve, settings = done(read_curve(folder)), identity.found(folder)

    def again(one: Curve, *untils: Limits) -> bool:
        return keep(path, one, settings, untils, lambda: asked.append(1) or {"test_loss": 0.5})  # type: ignore[func-returns-value]

    assert again(curve, BUDGET, Limits(passes=1000)) and not again(curve, BUDGET) and len(asked) == 1
    assert again(curve, Limits(epochs=2)) and read_record(path).untils == tuple(sorted((BUDGET, Limits(epochs=2)), key=str))
    assert not again(curve.head(Limits(iterations=50)), Limits(epochs=2))
    other = replace(curve, facts={**curve.facts, "source_sha256": "t"})
    assert not again(other, BUDGET) and not again(other.head(Limits(iterations=50)), Limits(epochs=2))  # of another source, no farther
    assert keep(path, other, settings, (BUDGET,), dict, again=True) and read_record(path).curve.facts["source_sha256"] == "t"
    assert keep(path, other.head(Limits(iterations=50)), {**settings, "local.passes": 7}, (), dict)  # of other settings: not this run
    path.write_text("{")
    assert again(curve, BUDGET) and read_record(path).curve.worth == {"test_loss": 0.5}


def test_the_runner_takes_a_record_for_the_run_and_begins_again_to_go_further(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    options = Options(tmp_path / "runs", {"mnist": "none"}, 1, say=said.append, records=tmp_path / "kept")
    folder = made(options.runs, CASE, lines(60, 6))
    monkeypatch.setattr("paper.runner.read_curve", lambda folder: done(curve) if (curve := read_curve(folder)) else None)
    monkeypatch.setattr("paper.runner.source_sha256", lambda _: "s")
    started: list[tuple[int, bool]] = []
    monkeypatch.setattr(Runner, "_start", lambda self, run, going, kept: started.append((len(going.accuracy), kept)) or 4)
    monkeypatch.setattr(Runner, "_last_words", lambda self, run: "")
    assert Runner(options).make([CASE]) == 0 and read_record(path_of(tmp_path / "kept", CASE.name, "seed-0")).untils == (BUDGET,)
    shutil.rmtree(folder)
    assert Runner(options).make([CASE]) == 0 and started == [] and said[-1].endswith("0 to make")
    (run,) = wanted([CASE], options)
    assert look(run, options, "s").fresh and not look(run, options, "t").fresh and not folder_of(options.runs, CASE, 0).exists()
    longer = replace(CASE, until=Limits(passes=48))
    assert Runner(options).make([longer]) == 1 and started == [(60, False)]
    assert any("its record ends after 60 iterations, it is made again from the start" in words for words in said)
    monkeypatch.setattr("paper.runner.source_sha256", lambda _: "t")
    assert Runner(options).make([CASE]) == 0 and "another source, kept" in "".join(said)
    assert Runner(replace(options, again=True)).show([CASE]) == 1 and records.VERSION == 1
