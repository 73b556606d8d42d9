"""Pictures of what the target takes, of the way there, and of where an outer iteration's time goes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from apts_mpi.study.points import Point
from apts_mpi.study.statistics import Case, Series
from apts_mpi.study.style import COLOURS, MARKERS, legend_below, new_figure, plain_numbers, quiet
from apts_mpi.timing import REGIONS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COSTS = (
    ("target_iterations", "outer iterations to the target"), ("target_seconds", "time to the target, s"),
    ("target_passes", "gradient evaluations to the target, passes over |D|"), ("target_bytes", "payload of one rank to the target, MB"),
)  # fmt: skip
ACROSS = (("passes", "gradient evaluations, passes over |D|", 1.0), ("bytes", "payload of one rank, MB", 1e-6), ("seconds", "time, s", 1.0))
REGION_COLOURS = (*COLOURS, "0.35", "0.55", "0.8")
_WIDE = 8  # a larger quotient of the ends needs a logarithmic axis


def costs(series: Sequence[Series]) -> Figure:
    """Iterations, time, gradient evaluations and bytes to the target, by method, one dot for each rank count; of one scaling."""
    figure = new_figure(10, 2.0 + 2 * max(1.2, 0.55 * len(series)))
    panels = figure.subplots(2, 2, sharey=True)
    ranks = sorted({case.ranks for one in series for case in one.cases})
    for panel, (name, title) in zip(panels.flat, COSTS, strict=True):
        _costs(panel, series, name, ranks)
        panel.set_xlabel(title)
    legend_below(figure, panels.flat, 6)
    return figure


def _costs(panel: Axes, series: Sequence[Series], name: str, ranks: Sequence[int]) -> None:
    quiet(panel)
    scale = 1e-6 if name == "target_bytes" else 1.0
    missed: list[tuple[float, int]] = []
    for row, one in enumerate(series):
        for case in one.cases:
            index = ranks.index(case.ranks)
            height = row + min(0.22, 0.8 / len(ranks)) * (index - (len(ranks) - 1) / 2)
            if case.shown(name) == math.inf:
                missed.append((height, index))
            elif not math.isnan(case.shown(name)):
                _dot(panel, case, name, scale, height, index)
    for index, P in enumerate(ranks):
        panel.plot([], [], MARKERS[index % len(MARKERS)], color=COLOURS[index % len(COLOURS)], label=f"P = {P}")
    _frame(panel, [one.method for one in series])
    for height, index in missed:
        panel.annotate(
            "not reached", (0.99, height), xycoords=("axes fraction", "data"), ha="right", va="center", fontsize=8,
            color=COLOURS[index % len(COLOURS)],
        )  # fmt: skip


def _dot(panel: Axes, case: Case, name: str, scale: float, height: float, index: int) -> None:
    found = case.estimate(name)
    crowded = not found.known
    middle = scale * case.shown(name)
    low, high = (scale * end if math.isfinite(end) else middle for end in (found.low, found.high))
    colour = COLOURS[index % len(COLOURS)]
    panel.errorbar(
        [middle], [height], xerr=[[middle - low], [high - middle]], fmt=MARKERS[index % len(MARKERS)], color=colour, capsize=2,
        markerfacecolor="white" if crowded else colour,
    )  # fmt: skip
    if crowded:
        panel.plot([], [], "o", color="0.3", markerfacecolor="white", label="oversubscribed")


def _frame(panel: Axes, names: Sequence[str]) -> None:
    values = [float(x) for line in panel.lines for x in np.atleast_1d(line.get_xdata()) if x > 0]
    if values and max(values) > _WIDE * min(values):
        panel.set_xscale("log")
        panel.set_xlim(min(values) / 1.6, max(values) * 1.6)
        plain_numbers(panel.xaxis, *panel.get_xlim())
    elif values:
        panel.set_xlim(0, 1.15 * max(values))
    panel.set_yticks(range(len(names)), names)
    panel.set_ylim(len(names) - 0.5, -0.5)


def ways(series: Sequence[Series], colours: Mapping[str, str], target: float) -> Figure:
    """Loss and accuracy against work, communication and time at the largest rank count; every run is a line."""
    figure = new_figure(11, 6.4)
    panels = figure.subplots(2, 3, sharex="col", sharey="row")
    largest = max(case.ranks for one in series for case in one.cases)
    cases = [case for one in series for case in one.cases if case.ranks == largest]
    for column, (across, title, scale) in enumerate(ACROSS):
        for row, name in enumerate(("loss", "accuracy")):
            _ways(panels[row, column], cases, across, scale, name, colours)
        panels[1, column].set_xlabel(title)
        if math.isfinite(target):
            panels[1, column].axhline(target, color="0.3", linewidth=1, linestyle="--", label="target")
    panels[0, 0].set(yscale="log", ylabel="training loss")
    panels[1, 0].set_ylabel("test accuracy, %")
    panels[0, 1].set_title(f"P = {largest}", fontsize=10)
    _upper_accuracies(panels[1, 0], cases)
    plain_numbers(panels[0, 0].yaxis, *panels[0, 0].get_ylim())
    legend_below(figure, panels.flat)
    return figure


def _ways(panel: Axes, cases: Sequence[Case], across: str, scale: float, name: str, colours: Mapping[str, str]) -> None:
    quiet(panel)
    ends = []
    for case in cases:
        label = case.method + (" (oversubscribed)" if case.crowded else "")
        for number, run in enumerate(case.runs):
            x, y = _curve(run, across, name)
            panel.plot(scale * x, y, color=colours[case.method], linewidth=1, alpha=0.6, label=label if number == 0 else None)
            ends += [float(x[-1])] if len(x) and x[-1] > 0 else []
    if ends and max(ends) > _WIDE * min(ends):
        panel.set_xscale("log")


def _curve(run: Point, across: str, name: str) -> tuple[Any, Any]:
    x, y = (np.array(run.curve.get(key, []), np.float64) for key in (across, name))
    known = np.isfinite(x) & np.isfinite(y)
    return x[known], y[known]


def _upper_accuracies(panel: Axes, cases: Sequence[Case]) -> None:
    """Show the upper part: the first iterations say little and would take most of the height."""
    found = [y for case in cases for run in case.runs for y in _curve(run, "passes", "accuracy")[1]]
    if found:
        top = max(found)
        panel.set_ylim(max(min(found) - 1, top - 30), min(100.0, top + 2))


def regions(series: Sequence[Series]) -> Figure:
    """Seconds of an outer iteration by region and their shares, method by method; of one scaling."""
    figure = new_figure(max(6.0, min(14.0, 1.2 + 2.4 * len(series))), 6.4)
    panels = figure.subplots(2, len(series), squeeze=False)
    for column, one in enumerate(series):
        parts = [(case, _parts(case)) for case in one.cases]
        for row, share in enumerate((False, True)):
            _stack(panels[row, column], parts, share)
        panels[0, column].set_title(one.method, fontsize=10)
        panels[1, column].set_xlabel("ranks P")
    panels[0, 0].set_ylabel("s per outer iteration")
    panels[1, 0].set_ylabel("share, %")
    legend_below(figure, panels.flat, 5)
    return figure


def _parts(case: Case) -> dict[str, float]:
    """Region -> median seconds over the runs whose seconds count, over all where none do."""
    runs = case.timed or case.runs
    return {region: median(run.phases.get(region, 0.0) for run in runs) for region in REGIONS}


def _stack(panel: Axes, parts: Sequence[tuple[Case, Mapping[str, float]]], share: bool) -> None:
    quiet(panel)
    below = np.zeros(len(parts))
    totals = np.array([sum(row.values()) or 1.0 for _, row in parts])
    for index, region in enumerate(REGIONS):
        values = np.array([row[region] for _, row in parts]) / (totals / 100 if share else 1.0)
        if values.any():
            style: dict[str, Any] = {"color": REGION_COLOURS[index], "edgecolor": "white", "linewidth": 0.4}
            panel.bar(range(len(parts)), values, 0.7, below, label=region, **style)
            below += values
    names = [str(case.ranks) + ("\u2020" if case.crowded else "") for case, _ in parts]
    panel.set_xticks(range(len(parts)), names, fontsize=9)
