"""Benchmarks of the paper: the tables, from made-up runs."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from paper import bars, beyond, experiments, identity, rates, repeated, targets, tuning, variants
from paper.cases import Case, adam, ours, paper, preset
from paper.curves import Curve
from paper.limits import Limits, Used
from paper.published import Series
from paper.report import Context, fallen
from paper.store import Store
from paper.table import Table, cell, spread, write
from paper.wanted import Options, wanted

from apts_mpi import settings
from apts_mpi.baseline import METHODS, Method
from apts_mpi.identity import PARTS
from apts_mpi.presets import PRESETS

DONE = "outer iterations done"


def curve(
    accuracy: Sequence[float], seed: int = 0, status: str = DONE, farthest: float = 1.0, loss: float = 1.0, source: str = "s",
) -> Curve:  # fmt: skip
    count = np.arange(1.0, len(accuracy) + 1)
    return Curve(
        seed, Used(count / 6, count, 2 * count), count, 8 * count, count, np.full(len(count), loss), math.nan,
        np.array(accuracy, float), farthest, 2, 1.0, status, {"git_commit": "c", "source_sha256": source},
    )  # fmt: skip


class MadeUp(Store):
    """A store of made-up runs by the names of their cases."""

    def __init__(self, runs: Mapping[str, Sequence[Curve]]) -> None:
        super().__init__(Path("nowhere"))
        self._made_up = runs

    def curves(self, case: Case) -> list[Curve]:
        return list(self._made_up.get(case.name, ()))


BUDGET = Limits(iterations=4, reductions=7)
BAR = bars.Bar(ours("mnist-10k", 2, BUDGET), 98.0)


def row(*curves: Curve, seeds: int = 2) -> dict[str, object]:
    return bars.row(BAR, MadeUp({BAR.case.name: curves}), seeds)


def test_a_bar_is_read_at_the_last_iteration_within_its_budget_and_not_at_the_best() -> None:
    found = row(curve([99, 99.5, 98.1, 90]), curve([10, 20, 98.1, 99], 1000))
    assert found["accuracies"] == [98.1, 98.1] and found["met"] is True and found["iterations"] == 3 and found["reductions"] == 6
    assert row(curve([99, 99.5, 97.8, 99.9]), curve([99, 99, 98.1, 99.9], 1000))["met"] is False


def test_a_bar_is_not_judged_before_every_seed_has_come_to_its_end() -> None:
    assert row(curve([99] * 4))["met"] is None
    assert row(curve([99] * 4), curve([99] * 2, 1000))["met"] is None  # stopped by the time limit before its budget was spent
    assert row(curve([99] * 4), curve([99] * 4, 1000, status=""))["runs"] == 1  # did not finish
    assert row(curve([99] * 4), curve([99] * 2, 1000, status="converged"))["met"] is True  # ended by itself


def test_a_step_beyond_its_radius_fails_the_bar() -> None:
    found = row(curve([99] * 4), curve([99] * 4, 1000, farthest=1.01))
    assert found["met"] is False and found["left_radius"] == [1000]
    assert row(curve([99] * 4, farthest=math.nan), curve([99] * 4, 1000))["met"] is True


def test_changes_by_other_radii_are_judged_by_the_largest() -> None:
    place = tuning.Place("mnist-10k", 2, Limits(iterations=3), 0.2)
    runs = {place.base.name: [curve([97, 98, 98.3])]} | {case.name: [curve([97, 98, 98.2])] for _, case in place.variants()}
    assert tuning.tables(MadeUp(runs), 1, (place,))[0].rows[0]["met"] is True
    odd = place.variants()[3][1].name
    for worse, points, work in (([97, 98, 98.01], 0.29, 0), ([97, 97, 98.3], 0.1, 50), ([97, 97, 97.9], 0.4, math.nan)):
        found = tuning.tables(MadeUp({**runs, odd: [curve(worse)]}), 1, (place,))[0].rows[0]
        assert found["met"] is False and found["points"] == pytest.approx(points)
        assert found["work"] == pytest.approx(work, nan_ok=True)
    left = curve([97, 98, 98.2], farthest=1.01)
    assert tuning.tables(MadeUp({**runs, odd: [left]}), 1, (place,))[0].rows[0]["met"] is False
    unpaired = curve([97, 98, 98.2], 1000)  # of a seed with which the default has not run
    assert tuning.tables(MadeUp({**runs, odd: [unpaired]}), 1, (place,))[0].rows[0]["met"] is None
    assert tuning.tables(MadeUp({name: run for name, run in runs.items() if name != odd}), 1, (place,))[0].rows[0]["met"] is None
    assert tuning.tables(MadeUp({place.base.name: [curve([98])]}), 1, (place,)) == []
    more = {place.base.name: [*runs[place.base.name], curve([90, 98, 99], 1000)], odd: [curve([97, 98, 98.4])]}
    found = tuning.tables(MadeUp(more), 2, (place,))[0].rows[0]  # one setting has run, with one seed
    assert (found["met"], found["rows"], found["runs"], found["work"]) == (None, 1, "1, 0", 0) and found["points"] == pytest.approx(0.1)


def test_the_ends_of_the_ranges_are_judged_with_all_seeds_and_what_lies_between_with_the_first() -> None:
    place = tuning.Place("mnist-10k", 2, Limits(iterations=3), 0.2)
    between = {label for label, case in place.variants() if case.seeds == 1}
    assert between == {"Delta0 0.01", "Delta0 0.1", "cap 32", "cap 128"}
    both = [curve([97, 98, 98.3]), curve([97, 98, 98.1], 1000)]
    runs = {place.base.name: both} | {case.name: both[: case.seeds or 2] for _, case in place.variants()}
    found = tuning.tables(MadeUp(runs), 2, (place,))[0].rows[0]
    assert (found["met"], found["runs"], found["points"]) == (True, "2, 1", 0)
    end = next(case.name for label, case in place.variants() if label == "cap 8")
    assert tuning.tables(MadeUp({**runs, end: both[:1]}), 2, (place,))[0].rows[0]["met"] is None


RACE = targets.Race("mnist-10k", Limits(iterations=3), {1000: 1, 10000: 1}, rates=(0.1, 0.01), subdomains=(2,))


def race(mine: Sequence[float], seeds: int = 1, **more: list[Curve]) -> list[dict[str, object]]:
    slow, fast, late = [90.0] * 6, [97.0, 97, 97, 98, 98, 98], [90.0, 90, 90, 90, 90, 98]
    runs = {
        ours("mnist-10k", 2, RACE.until).name: [curve(mine)],
        "mnist-10k/adam-1000-0.1": [curve(slow)], "mnist-10k/adam-1000-0.01": [curve(fast)],
        "mnist-10k/adam-1000-0.01-every-1": [curve([90.0] * 4 + [98, 98])],
        "mnist-10k/adam-10000-0.1": [curve(late)], "mnist-10k/adam-10000-0.01": [curve(slow)],
    }  # fmt: skip
    runs |= {name.replace("adam", "adam-mean"): curves for name, curves in runs.items() if "adam" in name}
    runs |= {f"mnist-10k/{name.replace('_', '-')}": curves for name, curves in more.items()}
    return targets.rows(RACE, MadeUp(runs), seeds)


def test_the_race_to_the_target_takes_the_best_rate_of_each_batch_and_counts_its_search() -> None:
    small, large, *means, mine = race([98, 98, 98])
    assert [row["method"] for row in means] == ["Adam 1,000, mean, rate 0.01", "Adam 10,000, mean, rate 0.1"]
    assert small["method"] == "Adam 1,000, rate 0.01" and small["reductions"] == 10 and small["tuning"] == 12
    assert large["method"] == "Adam 10,000, rate 0.1" and large["passes"] == 6
    assert mine["reductions_ratio"] == pytest.approx(0.2) and mine["passes_ratio"] == pytest.approx(1 / 6) and mine["met"] is True
    assert race([97, 98, 98])[-1]["met"] is False  # 4 / 10 of the reductions
    assert race([97, 97, 97])[-1]["met"] is False and math.isnan(race([97, 97, 97])[-1]["reductions"])
    assert race([98, 98, 98], seeds=3)[-1]["met"] is None


def test_the_means_search_tries_the_rates_about_the_best_of_the_last_iterate() -> None:
    wide = replace(RACE, rates=rates.RATES)
    assert wide.search(1000, MadeUp({}), True).rates == ()  # not known yet
    for index, window in ((0, rates.RATES[:4]), (4, rates.RATES[3:8]), (12, rates.RATES[11:])):
        runs = {wide.search(1000, MadeUp({})).cases[index].name: [curve([90.0] * 5 + [98])]}
        assert wide.search(1000, MadeUp(runs), True).rates == window


def test_ours_is_compared_with_the_better_adam_and_only_if_every_seed_of_it_gets_there() -> None:
    quick = {"adam-mean-10000-0.1": [curve([90.0, 90, 90, 98, 98, 98])], "ours-last-N2": [curve([97.0, 98, 98])]}
    *_, mine, last = race([98, 98, 98], **quick)
    assert mine["passes_ratio"] == pytest.approx(1 / 4) and "met" not in last and last["passes_ratio"] == pytest.approx(1 / 2)
    missed = curve([90.0] * 6, 1000)
    rows = race([98, 98, 98], **{"adam-1000-0.01-every-1": [curve([90.0] * 4 + [98, 98]), missed]})
    assert rows[0]["missed"] == 1 and rows[-1]["met"] is None  # its only rate that reaches the target
    other = {"adam-1000-0.1": [curve([90.0, 90, 90, 90, 90, 98])], "adam-1000-0.1-every-1": [curve([90.0] * 5 + [98])]}
    rows = race([98, 98, 98], **{"adam-1000-0.01-every-1": [missed]}, **other)
    assert rows[0]["method"] == "Adam 1,000, rate 0.1" and rows[-1]["met"] is True
    assert race([90, 90, 90, 98])[-1]["met"] is False  # beyond its budget of three iterations


def test_a_bar_that_has_not_been_tried_is_not_met() -> None:
    tried, other = tuning.Place("mnist-10k", 2, Limits(iterations=3), 0.2), tuning.Place("cifar10-10k", 2, Limits(iterations=3), 0.5)
    runs = {case.name: [curve([97, 98, 98.3])] for case in tuning.cases((tried,))}
    assert [row["met"] for row in tuning.tables(MadeUp(runs), 1, (tried, other))[0].rows] == [True, None]
    races = (RACE, replace(RACE, problem="cifar10-10k"))
    mine = MadeUp({ours(RACE.problem, 2, RACE.until).name: [curve([97, 98, 98.3])]})
    assert [row["met"] for row in targets.tables(mine, 1, races)[0].rows] == [None, None]


def test_seeds_of_several_sources_get_no_verdict() -> None:
    found = row(curve([99] * 4), curve([99] * 4, 1000, source="t"))
    assert found["met"] is None and str(found["method"]).endswith("(seeds of several sources)")
    table = Table("t", "Title", "", {}, [found, {"problem": "p", "method": "m", "met": True}, {"problem": "p", "method": "n"}])
    budget = "4 iterations, 7 reductions"
    assert fallen([table]) == [f"no verdict: Title: {found['problem']}, {found['method']}, N = 2, {budget}, 2 seeds"]
    assert fallen([Table("t", "Title", "", {}, [{"problem": "p", "met": False}])]) == ["NOT MET: Title: p"]
    place, changed = variants.Place("mnist-10k", 2, Limits(iterations=2)), variants.Variant("x", "with x", "--local.passes 3")
    runs = {changed.case(place).name: [curve([1, 2]), curve([1, 3], 1000, source="t")]}
    assert "several sources" in variants.table("t", "T", "", (variants.OURS, changed), (place,), MadeUp(runs))[0].rows[1][place.title]


def test_seeds_of_several_processors_are_marked_and_keep_their_verdict() -> None:
    here, there = ({"source_sha256": "s", "cpu": f"AMD EPYC, {kind}"} for kind in ("avx2, 2 CPUs", "avx512f, 2 CPUs"))
    first, second = replace(curve([99] * 4), facts=here), replace(curve([99] * 4, 1000), facts=there)
    assert str(row(first, second)["method"]).endswith("(several kinds of processor)") and row(first, second)["met"] is True
    more = replace(second, facts={**here, "cpu": "AMD EPYC, avx2, 16 CPUs"})
    assert "processor" not in str(row(first, more)["method"])
    old = replace(second, facts={**there, "source_sha256": "t"})
    assert str(row(first, old)["method"]).endswith("(seeds of several sources; several kinds of processor)")


def test_seconds_are_shown_of_runs_that_had_the_machine_alone() -> None:
    alone = replace(curve([99] * 4), facts={"source_sha256": "s", "jobs": 1, "ranks": 2})
    assert (row(alone)["seconds"], row(alone)["ranks"]) == (3, "2")
    assert math.isnan(row(alone, replace(alone, seed=1000, facts={**alone.facts, "jobs": 2}))["seconds"])  # type: ignore[arg-type]
    assert math.isnan(row(curve([99] * 4))["seconds"])  # type: ignore[arg-type]


def test_the_best_rate_by_what_is_asked() -> None:
    limits = Limits(epochs=1)
    search = rates.Search(lambda rate: adam("mnist-10k", 10000, rate, limits, seeds=1), (0.1, 0.2, 0.3, 0.4))
    names = [case.name for case in search.cases]
    store = MadeUp({names[0]: [curve([98, 1, 1, 1, 1, 97], loss=3)], names[1]: [curve([1, 98, 1, 1, 1, 98], loss=2)],
                    names[2]: [curve([math.nan] * 6, status="too many non-finite trials in a row", loss=math.nan)]})  # fmt: skip
    assert [rates.best(search, store, by).rate for by in ("target", "accuracy", "loss")] == [0.1, 0.2, 0.2]  # type: ignore[union-attr]
    found = rates.best(search, store, "target")
    assert found is not None and found.runs == 3 and found.passes == 18
    assert rates.best(search, MadeUp({}), "target") is None


def test_what_is_repeated_is_compared_after_the_same_epochs_and_shown_where_it_differs(tmp_path: Path) -> None:
    until = Limits(epochs=2)
    ends = {"min": np.array([10.0, 85, 90]), "max": np.array([10.0, 86, 94]), "mean": np.array([10.0, 85, 92])}
    published = {"apts_d_mnist_005_10000_2_o1": Series(np.arange(3.0), ends, ends)}
    case, mine = paper("mnist-10k-sigmoid", 2, "o1", "sum", until), ours("mnist-10k-sigmoid", 2, until)
    for end, inside in ((90.5, "yes"), (89.5, "no"), (94.5, "no")):
        made = MadeUp({case.name: [curve([50.0] * 11 + [end, 99])], mine.name: [curve([98.0] * 12)]})
        [line] = repeated.tables(2, made, published)[0].rows
        assert (line["accuracy"], line["published"], line["inside"], line["ours"]) == (end, 92, inside, 98)
    write(found := repeated.tables(2, made, published), tmp_path)
    assert [table.markdown() for table in repeated.kept(tmp_path)] == [table.markdown() for table in found]
    assert repeated.kept(tmp_path / "none") == []
    assert repeated.tables(2, made, {})[0].rows[0]["inside"] == "-"
    assert repeated.tables(3, made, published) == []  # no run has come so far


def test_a_setting_that_is_not_heeded_is_told() -> None:
    place, changed = variants.Place("mnist-10k", 2, Limits(iterations=2)), variants.Variant("x", "with x", "--local.passes 3")
    runs = {variants.OURS.case(place).name: [curve([1, 2, 3])], changed.case(place).name: [curve([1, 2, 3])]}
    found = variants.table("t", "T", "", (variants.OURS, changed), (place,), MadeUp(runs))[0].rows
    assert [one[place.title] for one in found] == ["2.00 [2.00, 2.00]", "2.00 [2.00, 2.00] (no effect: the same runs)"]
    for different in (curve([1, 2.5, 3]), curve([1, 2, 3], loss=2)):  # the mean of the same iterates; the same accuracies
        runs[changed.case(place).name] = [different]
        assert "no effect" not in variants.table("t", "T", "", (variants.OURS, changed), (place,), MadeUp(runs))[0].rows[1][place.title]


def test_a_variant_is_compared_with_ours_of_the_same_seeds() -> None:
    places = (variants.Place("mnist-10k", 2, Limits(iterations=2)), variants.Place("mnist-10k", 16, Limits(iterations=2)))
    changed = variants.Variant("x", "with x", "--local.passes 3")
    runs = {variants.OURS.case(places[0]).name: [curve([1, 2, 3]), curve([1, 4, 3], 1000)],
            changed.case(places[0]).name: [curve([1, 5, 3], 1000)], changed.case(places[1]).name: [curve([1, 7, 8])]}  # fmt: skip
    ours_row, row_of_x = variants.table("t", "T", "", (variants.OURS, changed), places, MadeUp(runs))[0].rows
    assert ours_row["runs"] == "2" and row_of_x["runs"] == "1"
    assert row_of_x[places[0].title] == "5.00 [5.00, 5.00] (+1.00)" and row_of_x[places[1].title] == "7.00 [7.00, 7.00]"


def test_every_case_has_settings_of_its_own_that_train_understands(tmp_path: Path) -> None:
    class Any(MadeUp):
        def curves(self, case: Case) -> list[Curve]:
            return [curve([50.0] * 300)]

    known = Context(Any({}), 2, 25, Path("none"), tmp_path)
    found = [case for stages in experiments.STAGES.values() for stage in stages for case in stage(known)]
    failing = SimpleNamespace(make=len)  # every run fails: each is tried, and counted, once
    assert experiments.make(experiments.NAMES, failing, known, [], dry=False) == len(set(found))  # type: ignore[arg-type]
    runs = wanted(found, Options(tmp_path, dict.fromkeys(experiments.DATA, "data"), 2))  # one name with two settings is an error
    seen = {json.dumps(identity.asked([*run.case.words, "--run.seed", str(run.seed)])): run.name for run in runs}
    assert len(found) > 250 and len(seen) == len(runs), "the same run under two names"
    assert {"figure1", "figure2", "bars", "presets", "tuning", "adam", "ablation", "second-order"} <= set(experiments.NAMES)


def test_a_run_is_wanted_once_with_all_its_budgets(tmp_path: Path) -> None:
    cases = [ours("digits", 2, Limits(passes=9)), ours("digits", 2, Limits(epochs=5)), adam("digits", 500, 0.1, Limits(epochs=1), seeds=1)]
    runs = wanted(cases, Options(tmp_path, {"digits": "d"}, 2))
    assert [run.name for run in runs] == ["digits/ours-N2 seed 0", "digits/adam-500-0.1 seed 0", "digits/ours-N2 seed 1000"]
    assert runs[0].untils == (Limits(passes=9), Limits(epochs=5))
    assert not runs[0].enough(curve([1.0] * 10)) and runs[0].enough(curve([1.0] * 30))
    with pytest.raises(ValueError, match="two cases are called"):
        wanted([cases[0], ours("digits", 2, Limits(passes=9), "--local.passes 7")], Options(tmp_path, {"digits": "d"}, 1))


def test_other_settings_are_another_run_and_other_places_are_not(tmp_path: Path) -> None:
    case = paper("digits", 8, "o1", "sum", Limits(epochs=4))
    layer = [(case.words[index][2:], case.words[index + 1]) for index in range(0, len(case.words), 2)]
    more = [("data.path", "/elsewhere"), ("stop.epochs", "3"), ("run.dir", "/there"), ("checkpoint.keep", "7"), ("run.seed", "1000")]
    (tmp_path / "config.toml").write_text(settings.to_toml(settings.resolve(settings.from_options([*layer, *more])).config))
    assert identity.differences(tmp_path, [*case.words, "--run.seed", "1000"]) == []
    assert identity.differences(tmp_path, [*case.words, "--run.seed", "0"]) == ["run.seed = 1000, not 0"]
    other = paper("digits", 8, "o1", "mean", Limits(epochs=4))
    assert identity.differences(tmp_path, [*other.words, "--run.seed", "1000"]) == ["solver.combine = 'sum', not 'mean'"]
    assert identity.differences(tmp_path / "none", case.words)


def test_under_a_schedule_another_end_is_another_run(tmp_path: Path) -> None:
    place = beyond.PLACES[0]
    case = place.tuned("sgd", 0.1)
    layer = [(case.words[index][2:], case.words[index + 1]) for index in range(0, len(case.words), 2)]
    (tmp_path / "config.toml").write_text(settings.to_toml(settings.resolve(settings.from_options(layer)).config))
    assert identity.differences(tmp_path, case.words) == []
    longer = replace(place, passes=48).tuned("sgd", 0.1)
    assert identity.differences(tmp_path, longer.words) == ["stop.epochs = 24, not 48"]
    with pytest.raises(ValueError, match="two cases are called"):
        wanted([case, longer], Options(tmp_path, {"cifar10": "d"}, 1))


@pytest.mark.parametrize("method", METHODS)
def test_what_a_method_does_not_know_makes_no_other_run_of_it(method: Method) -> None:
    known = set(identity.asked(["--method", method]))
    parts = {name for name in settings.keys() if name.startswith(PARTS)}
    beside = {"trust_region.radius_init", "trust_region.eta1", "global_step.solver", "global_step.memory", "local.gamma"}
    assert "solver.subdomains" in known and {"data.batch", "model.name", "run.seed", "method"} <= known and "preset" not in known
    assert ("baseline.average" in known) == (method != "apts")
    if method == "apts":
        sweep = {"local.chunk", "local.chunks_min", "local.chunks_max", "local.passes", "local.momentum", "solver.momentum"}
        assert parts - known == {"local.iters", "local.radius_start", "local.carry"}
        assert parts - set(identity.asked(["--preset", "paper"])) == sweep
    elif method == "trust-region":
        assert beside <= known and not {"local.solver", "local.iters", "solver.average", "trust_region.reached"} & known
    else:
        assert known & parts == {"solver.subdomains"}


# The defaults of an earlier source, which had neither trust_region.reached nor baseline.average.
EARLIER = {
    "trust_region.radius_init": 0.1, "trust_region.radius_max": 8.0, "trust_region.eta0": 0.0, "trust_region.eta1": 0.1,
    "local.solver": "lsr1", "local.chunks_min": 8, "local.memory": 5, "global_step.solver": "lsr1", "solver.average": 0,
}  # fmt: skip


def made_earlier(folder: Path, case: Case, **more: object) -> None:
    """The settings of a run as an earlier source wrote them down."""
    own = [(case.words[index][2:], case.words[index + 1]) for index in range(0, len(case.words), 2)]
    layer = {name: (value, "") for name, value in EARLIER.items()} | settings.from_options(own)
    layer |= {name.replace("__", "."): (value, "") for name, value in more.items()}
    baseline, text = False, ""
    for line in settings.to_toml(settings.resolve(layer).config).splitlines():
        baseline = line == "[baseline]" if line.startswith("[") else baseline
        text += "" if line.startswith("reached") or (baseline and line.startswith("average")) else f"{line}\n"
    (folder / "config.toml").write_text(text)


def test_a_run_of_adam_stays_the_same_run_whatever_has_become_of_the_defaults_of_apts(tmp_path: Path) -> None:
    last, at_mean = (adam("digits", 500, 0.1, Limits(epochs=1), mean=mean) for mean in (False, True))
    made_earlier(tmp_path, last)
    text = (tmp_path / "config.toml").read_text()
    assert text.count("average") == 1 and "average = 0" in text and "reached" not in text
    assert identity.differences(tmp_path, last.words) == []
    assert identity.differences(tmp_path, at_mean.words) == ["baseline.average = 0, not 8"]
    made_earlier(tmp_path, last, solver__average=8)  # how the mean was asked for
    assert identity.differences(tmp_path, at_mean.words) == []
    assert identity.differences(tmp_path, last.words) == ["baseline.average = 8, not 0"]


FORMER = {
    "default": {"local.solver": "sweep", "global_step.solver": "none", "trust_region.radius_init": 1.0, "trust_region.radius_max": 1e6,
                "trust_region.eta0": 0.1, "trust_region.eta1": 0.25, "solver.average": 8, "local.chunks_min": 20},
    "lsr1": {},
    "paper": {"trust_region.eta1": 0.25, "trust_region.radius_init": 0.01, "trust_region.radius_max": 4.0},
}  # fmt: skip


@pytest.mark.parametrize("name", PRESETS)
def test_a_run_of_a_preset_that_had_another_name_is_the_same_run(tmp_path: Path, name: str) -> None:
    case = preset("digits", name, 2, Limits(epochs=1))
    made_earlier(tmp_path, case, **{key.replace(".", "__"): value for key, value in FORMER[name].items()})
    text = (tmp_path / "config.toml").read_text()
    (tmp_path / "config.toml").write_text(text.replace(f'preset = "{name}"', 'preset = "sweep"'))
    assert identity.differences(tmp_path, case.words) == []
    in_full_batch = ["local.memory = 5, not 10"] if name == "default" else []  # where a sweep has got a metric since
    former, other = {key.replace(".", "__"): value for key, value in FORMER[name].items()}, preset("poisson", name, 2, Limits(epochs=1))
    made_earlier(tmp_path, other, **former)
    assert identity.differences(tmp_path, other.words) == in_full_batch
    made_earlier(tmp_path, case, **former)
    assert identity.differences(tmp_path, [*case.words, "--trust_region.reached", "0.1"])[0].startswith("trust_region.reached = 0.")


def test_a_table_says_what_is_not_known(tmp_path: Path) -> None:
    columns = {"a": ("A", ""), "b": ("B", ".1f"), "met": ("met", "")}
    rows = [{"a": "x", "b": math.nan, "met": None}, {"a": "y", "b": 2.25, "met": False}]
    table = Table("t", "Title", "Rule.", columns, rows, [curve([1])])
    assert table.markdown().splitlines()[-2:] == ["| x | - | - |", "| y | 2.2 | NO |"]
    write([table], tmp_path)
    told = json.loads((tmp_path / "t.json").read_text())
    assert told["rows"][0]["b"] is None and told["made_by"] == [{"git_commit": "c", "source_sha256": "s"}]
    assert cell(None, "d") == "-" and spread([1.0, 2.0]) == "1.50 [1.00, 2.00]" and spread([1.0, math.nan]) == "-" and spread([]) == "-"
