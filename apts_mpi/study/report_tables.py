"""The tables of a scaling report."""

from __future__ import annotations

import math
from collections.abc import Sequence

from apts_mpi.study.document import Table
from apts_mpi.study.figures import called, sentence
from apts_mpi.study.figures_scaling import WITHIN, Predictions, predicted
from apts_mpi.study.fits import Fit, fit
from apts_mpi.study.points import Points
from apts_mpi.study.statistics import WALL_CLOCK, Case, Estimate, Series, distinct_cases
from apts_mpi.timing import size_text

DAGGER = "\u2020"  # oversubscribed
NOT_REACHED = "not reached"
CLOCKS = {"iteration_seconds": "outer iteration", "seconds_per_pass": "pass", "target_seconds": "time to target"}


def number(value: float, digits: int = 3) -> str:
    """A number for people: '-' if it does not exist, words if the target was not reached."""
    if math.isnan(value):
        return "-"
    if math.isinf(value):
        return NOT_REACHED
    return f"{value:,.0f}" if abs(value) >= 10 ** (digits - 1) else f"{value:.{digits}g}"


def spread(found: Estimate, digits: int = 3) -> str:
    """'median [low, high]'; the median alone where there is one value or all look the same."""
    middle, low, high = (number(value, digits) for value in (found.median, found.low, found.high))
    return middle if math.isnan(found.low) or low == high else f"{middle} [{low}, {high}]"


def cell(case: Case, name: str, digits: int = 3) -> str:
    """A quantity of a case, marked where its seconds come from oversubscribed runs."""
    if name in WALL_CLOCK and case.crowded:
        return number(case.shown(name), digits) + DAGGER
    return spread(case.estimate(name), digits)


def volume(case: Case, name: str) -> str:
    """Bytes of a case."""
    value = case.estimate(name).median
    return size_text(value) if math.isfinite(value) else number(value)


def speed(series: Sequence[Series], scaling: str, network: str) -> Table:
    """Seconds, speed-up and efficiency of one scaling on one network."""
    name = "scaled speed-up" if scaling == "weak" else "speed-up"
    header = ("method", "ranks", "s per outer iteration", "s per pass", name, "efficiency", "runs")
    rows = tuple(row for one in series for row in _speed(one))
    caption = f"{sentence(scaling)} scaling, {called(network)}: time, {name} and efficiency of an outer iteration, medians [95 % interval]."
    return Table(caption, header, rows, f"speed-{scaling}-{network or 'real'}")


def _speed(series: Series) -> list[tuple[str, ...]]:
    up, efficiency = series.speedup("iteration_seconds"), series.efficiency("iteration_seconds")
    return [
        (series.method, f"{case.ranks}{DAGGER if case.crowded else ''}", cell(case, "iteration_seconds", 4), cell(case, "seconds_per_pass"),
         spread(up.get(case.ranks, Estimate())), spread(efficiency.get(case.ranks, Estimate())), str(len(case.runs)))
        for case in series.cases
    ]  # fmt: skip


def work(series: Sequence[Series], scaling: str, network: str, target: float) -> Table:
    """What the target takes, or whole runs where there is none."""
    known = math.isfinite(target)
    prefix, until = ("target_", f"to {target:g} % test accuracy") if known else ("", "of whole runs")
    header = ("method", "ranks", "iterations", "time, s", "passes", "reductions", "bytes", "accuracy, %", "reached" if known else "runs")
    rows = tuple(_work(case, prefix) for one in series for case in one.cases)
    caption = f"{sentence(scaling)} scaling, {called(network)}: work, time and communication {until}, medians [95 % interval]."
    return Table(caption, header, rows, f"target-{scaling}-{network or 'real'}")


def _work(case: Case, prefix: str) -> tuple[str, ...]:
    counts = [cell(case, f"{prefix}{name}") for name in ("iterations", "seconds" if prefix else "run_seconds", "passes", "reductions")]
    ranks, runs = f"{case.ranks}{DAGGER if case.crowded else ''}", len(case.runs)
    last = f"{case.reached} of {runs}" if prefix else str(runs)
    return case.method, ranks, *counts, volume(case, f"{prefix}bytes"), cell(case, "accuracy", 4), last


def clocks(series: Sequence[Series], target: float) -> Table:
    """Speed-up and efficiency in all kinds of seconds."""
    names = [name for name in CLOCKS if name != "target_seconds" or math.isfinite(target)]
    header = ("scaling", "network", "method", "ranks", *(f"{word}, {CLOCKS[name]}" for name in names for word in ("S", "E")))
    rows = []
    for one in series:
        found = [(one.speedup(name), one.efficiency(name)) for name in names]
        for case in one.cases:
            if not case.crowded and case is not one.base:
                cells = [spread(each.get(case.ranks, Estimate())) for pair in found for each in pair]
                rows.append((one.scaling, called(one.network), one.method, str(case.ranks), *cells))
    return Table("Speed-up S and efficiency E by what is timed, medians [95 % interval].", header, tuple(rows), "clocks", 3)


def fits(series: Sequence[Series], target: float) -> Table:
    """The parallel share of every series, by what is timed."""
    rows = []
    for one in series:
        for name, words in CLOCKS.items():
            found = fit(one, name) if name != "target_seconds" or math.isfinite(target) else None
            if found is not None:
                rows.append((one.scaling, called(one.network), one.method, words, found.law, found.kind, share(one, name, found)))
    header = ("scaling", "network", "method", "timed", "law", "from", "p")
    return Table("Parallel share p after Amdahl (strong) and Gustafson (weak), medians [95 % interval].", header, tuple(rows), "fits", 6)


def share(series: Series, name: str, found: Fit) -> str:
    """p with its interval; words where there is none, since more ranks take longer."""
    if found.p.median < 0:
        slower = [str(ranks) for ranks, up in series.speedup(name).items() if up.median < 1]
        return f"none: slower on {', '.join(slower) or 'more'} ranks"
    return f"{number(found.p.median, 4)} [none, {number(found.p.high, 4)}]" if found.p.low < 0 else spread(found.p, 4)


def errors(series: Sequence[Series], predictions: Predictions) -> Table:
    """Measured against predicted seconds, case by case."""
    rows = [row for case in distinct_cases(series) if (row := _error(case, predictions))]
    good = sum(row[-1] == "yes" for row in rows)
    header = ("scaling", "network", "method", "ranks", "measured, s", "predicted, s", "floor, s", "error, %", "within 10 %")
    count = f"{good} of {len(rows)} {'case' if len(rows) == 1 else 'cases'} within 10 %"
    return Table(f"Predicted against measured seconds of an outer iteration: {count}.", header, tuple(rows), "predictions", 3)


def error(case: Case, predictions: Predictions) -> float:
    """By what share of the measured seconds the predicted ones differ from them; nan where one of both is missing."""
    off = predicted(case, predictions, "seconds") / case.estimate("iteration_seconds").median - 1
    return off if math.isfinite(off) else math.nan


def _error(case: Case, predictions: Predictions) -> tuple[str, ...]:
    off = error(case, predictions)
    if math.isnan(off):
        return ()
    guesses = [predicted(case, predictions, name) for name in ("seconds", "floor")]
    seconds = [number(value, 4) for value in (case.estimate("iteration_seconds").median, *guesses)]
    scalings, verdict = " and ".join(case.runs[0].scalings), "yes" if abs(off) <= WITHIN else "NO"
    return scalings, called(case.network), case.method, str(case.ranks), *seconds, f"{100 * off:+.1f}", verdict


def tuning(points: Points) -> Table:
    """Cost of the searches for learning rates."""
    header = ("method", "best rate", "runs", "passes", "reductions", "bytes", "seconds")
    rows = []
    for method, cost in points.tuning.items():
        known = {key: math.nan if cost.get(key) is None else float(cost[key]) for key in ("best_lr", *header[2:])}
        bytes_ = "-" if math.isnan(known["bytes"]) else size_text(known["bytes"])
        plain = [number(known[key]) for key in ("best_lr", "runs", "passes", "reductions")]
        rows.append((method, *plain, bytes_, number(known["seconds"])))
    return Table("Cost of the search for the learning rate.", header, tuple(rows), "tuning")


def with_tuning(points: Points, series: Sequence[Series]) -> Table:
    """Time to target with the seconds of the search before it; a method without a search adds nothing."""
    rows = []
    for one in series:
        for case in one.cases:
            found, cost = case.estimate("target_seconds").median, tuning_seconds(points, case)
            if not math.isnan(found):
                plain = (number(found), number(cost) if cost else "none", number(found + cost))
                rows.append((one.scaling, called(one.network), one.method, str(case.ranks), *plain))
    header = ("scaling", "network", "method", "ranks", "time to target, s", "search, s", "both, s")
    caption = (
        "Time to the target with the search for the learning rate added: the search's gradient evaluations at the speed of the case. "
        "A search is for one batch; choosing the best batch costs those of all. Oversubscribed cases left out."
    )
    return Table(caption, header, tuple(rows), "both", 3)


def tuning_seconds(points: Points, case: Case) -> float:
    """Seconds that the search for a case's method would take there: its gradient evaluations at the case's speed; 0 without one."""
    passes = points.tuning.get(case.runs[0].method, {}).get("passes")
    return float(passes) * case.estimate("seconds_per_pass").median if passes is not None else 0.0
