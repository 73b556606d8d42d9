"""Pictures of time and speed-up against ranks, and of predicted against measured seconds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from apts_mpi.study.fits import fit
from apts_mpi.study.statistics import Case, Estimate, Series
from apts_mpi.study.style import COLOURS, by_ranks, legend_below, new_figure, plain_numbers, quiet

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Predictions = Mapping[str, Mapping[str, float]]  # run -> "seconds" of an outer iteration and their "floor"
TIMES = (("iteration_seconds", "s per outer iteration"), ("seconds_per_pass", "s per pass"))
GUESSES = (("seconds", "D", "cost model"), ("floor", "v", "floor: bare gradients and sums"))
WITHIN = 0.10  # the band of a good prediction


def predicted(case: Case, predictions: Predictions, name: str) -> float:
    """Median of the predictions of a case's runs; nan without any."""
    found = [predictions[run.run][name] for run in case.runs if run.run in predictions and name in predictions[run.run]]
    return median(found) if found else math.nan


def grouped(series: Sequence[Series]) -> dict[str, list[Series]]:
    """Scaling -> its series."""
    return {scaling: [s for s in series if s.scaling == scaling] for scaling in dict.fromkeys(s.scaling for s in series)}


def times(series: Sequence[Series], colours: Mapping[str, str], predictions: Predictions) -> Figure:
    """Time per outer iteration and per pass against ranks, beside their bounds."""
    scalings = grouped(series)
    figure = new_figure(4.8 * len(scalings) + 0.4, 7.2)
    panels = figure.subplots(len(TIMES), len(scalings), squeeze=False)
    for column, (scaling, group) in enumerate(scalings.items()):
        for row, (name, title) in enumerate(TIMES):
            panel = panels[row, column]
            _times(panel, group, name, colours, predictions if row == 0 else {})
            panel.set_ylabel(title)
            panel.set_title(f"{scaling} scaling", fontsize=10)
    legend_below(figure, panels.flat, 3 if len(scalings) > 1 else 2)
    return figure


def _times(panel: Axes, group: Sequence[Series], name: str, colours: Mapping[str, str], predictions: Predictions) -> None:
    quiet(panel)
    for series in group:
        _measured(panel, series, name, colours[series.method])
        _ideal_time(panel, series, name, colours[series.method])
        _guesses(panel, series, predictions, colours[series.method])
    by_ranks(panel, sorted({case.ranks for series in group for case in series.cases}))
    panel.set_yscale("log")
    plain_numbers(panel.yaxis, *panel.get_ylim())


def _measured(panel: Axes, series: Series, name: str, colour: str) -> None:
    found = {case.ranks: case.estimate(name) for case in series.cases if not case.crowded}
    bars(panel, found, colour, series.method)
    crowded = {case.ranks: case.shown(name) for case in series.cases if case.crowded}
    if crowded:
        panel.plot(*_columns(crowded), "o", color=colour, markerfacecolor="white", markersize=6)
        panel.plot([], [], "o", color="0.3", markerfacecolor="white", label="oversubscribed")


def bars(panel: Axes, found: Mapping[int, Estimate], colour: str, label: str, line: str = "-", aside: float = 1.0) -> None:
    """Medians with their intervals, joined by a line, at ``aside`` times their ranks."""
    known = {ranks: e for ranks, e in found.items() if e.known}
    middle = np.array([e.median for e in known.values()])
    ends = [[e.low for e in known.values()], [e.high for e in known.values()]]
    ends = np.nan_to_num(np.abs(np.array(ends).reshape(2, -1) - middle), posinf=0)
    style = {"fmt": f"o{line}", "color": colour, "markersize": 5, "capsize": 3, "linewidth": 1.4, "label": label}
    panel.errorbar([aside * ranks for ranks in known], middle, yerr=ends, **style)  # type: ignore[arg-type]


def _aside(group: Sequence[Series]) -> dict[str, float]:
    """A factor for each series, so that equal points lie beside each other."""
    return {series.method: 1.02 ** (2 * index + 1 - len(group)) for index, series in enumerate(group)}


def _columns(values: Mapping[int, float]) -> tuple[list[int], list[float]]:
    return list(values), list(values.values())


def _ideal_time(panel: Axes, series: Series, name: str, colour: str) -> None:
    base = series.base
    if base is None or not base.estimate(name).known:
        return
    first = base.estimate(name).median
    ideal = {case.ranks: first * (base.ranks / case.ranks if series.scaling == "strong" else 1.0) for case in series.cases}
    panel.plot(*_columns(ideal), "--", color=colour, linewidth=1, alpha=0.6)
    panel.plot([], [], "--", color="0.3", linewidth=1, label="ideal, through the base case")


def _guesses(panel: Axes, series: Series, predictions: Predictions, colour: str) -> None:
    for name, marker, label in GUESSES:
        values = {case.ranks: predicted(case, predictions, name) for case in series.cases}
        if any(not math.isnan(value) for value in values.values()):
            style = {"marker": marker, "linestyle": "none", "markerfacecolor": "none", "markersize": 9}
            panel.plot(*_columns(values), color=colour, **style)  # type: ignore[arg-type]
            panel.plot([], [], color="0.3", label=label, **style)  # type: ignore[arg-type]


def speedups(series: Sequence[Series], colours: Mapping[str, str]) -> Figure:
    """Speed-up and efficiency against ranks, with the ideal and the fitted laws."""
    scalings = grouped(series)
    figure = new_figure(4.8 * len(scalings) + 0.4, 7.2)
    panels = figure.subplots(2, len(scalings), squeeze=False)
    for column, (scaling, group) in enumerate(scalings.items()):
        _speedup(panels[0, column], group, colours)
        _efficiency(panels[1, column], group, colours)
        panels[0, column].set_title(f"{scaling} scaling", fontsize=10)
        panels[0, column].set_ylabel("speed-up T(P0) / T(P)" if scaling == "strong" else "scaled speed-up P/P0 T(P0) / T(P)")
        panels[1, column].set_ylabel("efficiency")
    legend_below(figure, panels.flat)
    return figure


def _speedup(panel: Axes, group: Sequence[Series], colours: Mapping[str, str]) -> None:
    quiet(panel)
    ranks, aside = clean_ranks(group), _aside(group)
    for series in group:
        _law(panel, series, colours[series.method])
        bars(panel, series.speedup("iteration_seconds"), colours[series.method], series.method, "", aside[series.method])
    if ranks:
        panel.plot(ranks, [P / ranks[0] for P in ranks], "--", color="0.3", linewidth=1, label="ideal")
        by_ranks(panel, ranks)
        panel.set_yscale("log", base=2)
        plain_numbers(panel.yaxis, *panel.get_ylim())


def _law(panel: Axes, series: Series, colour: str) -> None:
    found = fit(series, "iteration_seconds")
    if found is not None:
        across = np.geomspace(found.base, max(found.ranks), 50)
        panel.plot(across, found.speedup(across), ":", color=colour, linewidth=1.6)
        panel.plot([], [], ":", color="0.3", linewidth=1.6, label=f"{found.law}" + (" (interpolated)" if found.interpolated else ""))


def _efficiency(panel: Axes, group: Sequence[Series], colours: Mapping[str, str]) -> None:
    quiet(panel)
    aside = _aside(group)
    for series in group:
        bars(panel, series.efficiency("iteration_seconds"), colours[series.method], series.method, "-", aside[series.method])
    panel.axhline(1, linestyle="--", color="0.3", linewidth=1)
    panel.set_ylim(0, max(1.1, panel.get_ylim()[1]))
    if ranks := clean_ranks(group):
        by_ranks(panel, ranks)


def clean_ranks(group: Sequence[Series]) -> list[int]:
    """Rank counts whose seconds count."""
    return sorted({case.ranks for series in group for case in series.cases if not case.crowded})


def accuracy_of_model(series: Sequence[Series], colours: Mapping[str, str], predictions: Predictions) -> Figure:
    """Predicted against measured seconds of an outer iteration, around the diagonal."""
    figure = new_figure(5.6, 5.6)
    panel = figure.subplots()
    quiet(panel)
    ends = []
    for one in series:
        pairs = [(case.estimate("iteration_seconds").median, predicted(case, predictions, "seconds")) for case in one.cases]
        known = [pair for pair in pairs if all(map(math.isfinite, pair))]
        marker = "o" if one.scaling == "strong" else "s"
        panel.plot([m for m, _ in known], [p for _, p in known], marker, color=colours[one.method], alpha=0.8, label=one.method)
        ends += [value for pair in known for value in pair]
    _diagonal(panel, min(ends, default=0.5) / 1.3, max(ends, default=1.0) * 1.3)
    legend_below(figure, [panel], 3)
    return figure


def _diagonal(panel: Axes, low: float, high: float) -> None:
    line = np.array([low, high])
    panel.plot(line, line, "-", color="0.4", linewidth=1, zorder=0)
    panel.fill_between(line, line * (1 - WITHIN), line * (1 + WITHIN), color=COLOURS[4], alpha=0.25, linewidth=0, label="within 10 %")
    panel.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high), aspect="equal")
    panel.set_xlabel("measured, s per outer iteration (circle: strong, square: weak)")
    panel.set_ylabel("predicted, s per outer iteration")
    for axis in (panel.xaxis, panel.yaxis):
        plain_numbers(axis, low, high)
