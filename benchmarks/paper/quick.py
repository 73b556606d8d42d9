"""A small form of the experiments on the digits data set, with assertions that a broken method does not pass."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from paper import bars, drawing, rates, targets, tuning, variants
from paper.bars import Bar
from paper.cases import Case, ours, paper
from paper.drawing import Line
from paper.figures import BY_SUBDOMAINS
from paper.limits import Limits
from paper.runner import Runner
from paper.store import Store
from paper.table import Table, write
from paper.wanted import Options

BUDGET, LONG = Limits(passes=10, reductions=30), Limits(iterations=24)
BARS = (Bar(ours("digits", 2, BUDGET), 92.0), Bar(ours("digits", 8, BUDGET), 90.0))
STUCK = Bar(ours("digits", 2, BUDGET, "--trust_region.radius_init 1e-5 --trust_region.radius_max 1e-5", "stuck"), 92.0)
MEAN, SUM = (paper("digits", 8, "o2", combine, Limits(epochs=4)) for combine in ("mean", "sum"))
PLACE = tuning.Place("digits", 2, LONG, 3.0)
STARTS = [case for label, case in PLACE.variants() if label in ("Delta0 0.001", "Delta0 10")]
RACE = targets.Race("digits", LONG, {500: 8}, rates=(1e-3, 1e-2, 10.0), subdomains=(2,), around=None)
VARIANT, ONE = (variants.OURS, variants.Variant("no-momentum", "no momentum", "--local.momentum 0")), variants.Place("digits", 2, BUDGET)
Say = Callable[[str], None]


def cases(store: Store) -> list[Case]:
    """Some of every experiment."""
    races = [*RACE.search(500, store).cases, *RACE.search(500, store, True).cases]
    return [STUCK.case, MEAN, SUM, PLACE.base, *STARTS, *races, *variants.cases(VARIANT, (ONE,))]


class Checks:
    """Says what holds and what does not, and counts the latter."""

    def __init__(self, say: Say) -> None:
        self._say, self.failed = say, 0

    def __call__(self, holds: bool, words: str) -> None:
        self.failed += not holds
        self._say(f"{'holds ' if holds else 'FAILED'}  {words}")


def main(folder: Path, say: Say) -> int:
    """Make the runs in ``folder``, look at what they show; 1 if anything is wrong."""
    from apts_mpi.storage.convert import convert

    if not (folder / "digits" / "manifest.json").is_file():
        convert("digits", None, folder / "digits")
    options = Options(folder / "runs", {"digits": str(folder / "digits")}, seeds=1, ranks=1, jobs=2, say=say, records=folder / "records")
    check, store = Checks(say), Store(options.runs, say=say)
    check(Runner(replace(options, ranks=2, jobs=1)).make(bars.cases(BARS)) == 0, "runs on two ranks finish")
    check(Runner(options).make(cases(store)) == 0, "runs on one rank finish")
    store.forget()
    check(Runner(options).make(targets.finals(store, (RACE,))) == 0, "the best rate is run once more")
    store.forget()
    said: list[str] = []
    check(Runner(replace(options, say=said.append)).make([*bars.cases(BARS), *cases(store)]) == 0 and said[-1].endswith(" 0 to make"),
          "a second call finds every run and starts none")  # fmt: skip
    judge(store, check)
    tables = [table("quick-bars", BARS, store), *targets.tables(store, 1, (RACE,)),
              *variants.table("quick-ablation", "Ablation", "", VARIANT, (ONE,), store)]  # fmt: skip
    write(tables, folder / "results")
    show(tables, store, folder / "results", check, say)
    say(f"{check.failed} failed" if check.failed else "all of it holds")
    return int(check.failed > 0)


def table(name: str, some: tuple[Bar, ...], store: Store) -> Table:
    """Some bars."""
    curves = [curve for bar in some for curve in store.curves(bar.case)]
    return Table(name, "Bars", bars.RULE, bars.COLUMNS, [bars.row(bar, store, 1) for bar in some], curves)


def judge(store: Store, check: Checks) -> None:
    """What the runs must show."""
    for bar in BARS:
        found = bars.row(bar, store, 1)
        spent = found["passes"] <= BUDGET.passes and found["reductions"] <= BUDGET.reductions
        check(found["met"] is True and spent, f"{bar.case.name}: {found['shown']} >= {bar.accuracy:g} within the budget")
    stuck = bars.row(STUCK, store, 1)
    check(stuck["met"] is False, f"a method that cannot move does not meet the bar: {stuck['shown']}")
    mean, sums = (end(case, store) for case in (MEAN, SUM))
    check(mean > sums + 2, f"Algorithm 1, N = 8: mean {mean:.2f} is better than sum {sums:.2f} by 2 points at least")
    ends = [end(case, store) for case in STARTS]
    apart = abs(ends[1] - ends[0])
    check(apart <= PLACE.points, f"from Delta0 1e-3 and 10: {ends[0]:.2f} and {ends[1]:.2f}, {PLACE.points:g} points apart at most")
    adam = rates.best(RACE.search(500, store), store, "target")
    check(adam is not None and adam.rate < 1 and adam.runs == 3 and abs(adam.passes - 24) < 1, f"the search for Adam's rate: {adam}")
    lines = targets.rows(RACE, store, 1)
    mine, theirs = (next(row for row in lines if "met" in row)["reductions"], min(row["reductions"] for row in lines if row["tuning"]))
    check(mine <= theirs, f"reductions to {PLACE.base.problem.target:g} %: ours {mine:.0f}, the better Adam's {theirs:.0f}")
    with_it, without = (end(variant.case(ONE), store) for variant in VARIANT)
    check(math.isfinite(without) and with_it != without, f"ablation: {with_it:.2f} with momentum, {without:.2f} without")


def end(case: Case, store: Store) -> float:
    """Accuracy at the case's budget; nan without a run."""
    return next((curve.cut(case.until)["accuracy"] for curve in store.finished(case)), math.nan)


def show(tables: list[Table], store: Store, folder: Path, check: Checks, say: Say) -> None:
    """Tables and a picture."""
    for one in tables:
        say(f"\n{one.markdown()}")
        text = (folder / f"{one.name}.json").read_text(encoding="utf-8")
        told = json.loads(text)
        whole = told["rows"] != [] and all(made["source_sha256"] for made in told["made_by"]) and told["made_by"] != []
        check(whole and str(folder.resolve().parent) not in text, f"{one.name}.json says what made its rows, and names no folder")
    lines = [Line.of(f"{case.method}, N = 8", BY_SUBDOMAINS[2 + 2 * index], case, store) for index, case in enumerate((MEAN, SUM))]
    picture = drawing.work(MEAN.problem, {8: lines}, "accuracy", 4, folder / "quick")
    check(1000 < picture.stat().st_size < 150_000, f"a picture of {picture.stat().st_size // 1000} kB")
