"""The pictures: curves with bands from the least to the largest of the seeds."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from apts_mpi.study.style import COLOURS, legend_below, new_figure, plain_numbers, quiet, save
from paper.cases import Case, Problem
from paper.curves import Curve, Numbers
from paper.published import Series
from paper.store import Store
from paper.table import SEVERAL, mixed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

POINTS = 240  # of a curve
ACROSS = (
    ("epochs", "epochs", 1.0), ("passes", "gradient evaluations, passes", 1.0), ("seconds", "time, s", 1.0),
    ("bytes", "reduced vectors, MB", 1e-6),
)  # fmt: skip
BLACK = COLOURS[-1]
BELOW = {"mnist": 80.0, "cifar10": 30.0}  # accuracies of which nothing is shown
FLOOR = 1.46115  # of the loss behind a sigmoid head: softmax of one 1 and nine 0
TICKS = {"mnist": (80, 85, 90, 95, 97, 98, 98.5, 99), "sigmoid": (1.465, 1.47, 1.48, 1.5, 1.55, 1.6, 1.8, 2.3)}
WORDS = {"loss": "training loss", "accuracy": "test accuracy, %"}


@dataclass(frozen=True)
class Style:
    """How a line looks."""

    colour: str
    dashes: str | tuple[int, tuple[int, ...]] = "-"
    width: float = 1.5


@dataclass(frozen=True)
class Line:
    """The runs of one case under one name, each up to the same end."""

    label: str
    curves: Sequence[Curve]
    style: Style
    mark: str = ""  # behind the label: what is missing

    @classmethod
    def of(cls, label: str, style: Style, case: Case, store: Store) -> Line:
        """The runs that have come to the end; where none has, those that are there. The mark says so, and what else is odd."""
        there = store.curves(case)
        done = [curve for curve in there if curve.enough(case.until)]
        used, wanted = done or there, store.wanted(case)
        marks = [f"{len(used)}{f' of {wanted}' if wanted < sys.maxsize else ''} seeds"] if wanted > len(used) or not done else []
        marks += ["unfinished"] if not done else []
        marks += [SEVERAL] if mixed(used) else []
        return cls(label, [curve.head(case.until) for curve in used], style, f" ({', '.join(marks)})" if marks else "")

    def band(self, what: str, across: str, log: bool) -> tuple[Numbers, Numbers, Numbers, Numbers] | None:
        """x, least, mean and largest over the seeds, where all of them have been; None without runs."""
        pairs = [curve.losses(across) if what == "loss" else curve.accuracies(across) for curve in self.curves]
        pairs = [(x, y) for x, y in pairs if len(x) > 1]
        if not pairs:
            return None
        low, high = max(x[0] for x, _ in pairs), min(x[-1] for x, _ in pairs)
        low = min(x[1] for x, _ in pairs) if log and low <= 0 else low
        if len(pairs) == 1:  # its own points
            x = pairs[0][0][pairs[0][0] >= low]
        else:
            x = np.geomspace(low, high, POINTS) if log else np.linspace(low, high, POINTS)
        rows = np.array([np.interp(x, *pair) for pair in pairs])
        return x, rows.min(0), rows.mean(0), rows.max(0)

    @property
    def machines(self) -> set[tuple[str, ...]]:
        """What each of its runs had: CPU, devices, ranks, threads and, last, how many runs went at a time; empty where nobody noted it."""
        names = ("cpu", "devices", "ranks", "threads_per_rank", "jobs")
        return {tuple(str(curve.facts.get(name) or "") for name in names) for curve in self.curves}

    def draw(self, panel: Axes, what: str, across: str, scale: float, log: bool) -> None:
        """Band and mean."""
        found = self.band(what, across, log)
        if found is not None:
            x, low, middle, high = found
            panel.fill_between(scale * x, low, high, color=self.style.colour, alpha=0.18, linewidth=0)
            look = self.style
            panel.plot(scale * x, middle, label=self.label + self.mark, color=look.colour, linestyle=look.dashes, linewidth=look.width)


def _published(panel: Axes, series: Series, what: str, colour: str, label: str) -> None:
    values = getattr(series, what)
    panel.fill_between(series.epochs, values["min"], values["max"], color=colour, alpha=0.1, linewidth=0)
    panel.plot(series.epochs, values["mean"], color=colour, linewidth=1.2, linestyle=(0, (4, 2)), label=label)


def overlay(
    problem: Problem, combine: str, by_order: Mapping[str, Sequence[Line]], published: Mapping[str, Mapping[str, Series]], epochs: int,
    stem: Path,
) -> Path:  # fmt: skip
    """Loss and accuracy by epoch: first order left, second order right; ours solid, the published curves dashed."""
    figure = new_figure(9.5, 6.6)
    panels = figure.subplots(2, 2, sharex=True, sharey="row")
    for column, (order, words) in enumerate((("o1", "first order"), ("o2", "second order (L-SR1)"))):
        for row, what in enumerate(WORDS):
            panel = panels[row, column]
            quiet(panel)
            for line in by_order[order]:
                line.draw(panel, what, "epochs", 1.0, False)
                name = line.label.partition(",")[0]
                series = published.get(order, {}).get(name)
                if series is not None:
                    _published(panel, series, what, line.style.colour, f"{name}, published")
        panels[0, column].set_title(f"Algorithm 1, {words}, {combine} of the steps", fontsize=10)
        panels[1, column].set_xlabel("epochs")
    for row, what in enumerate(WORDS):
        panels[row, 0].set_ylabel(WORDS[what])
        _height(panels[row, 0], what, problem)
    panels[1, 0].set_xlim(0, epochs)
    _down_to_what_is_seen(panels[0], FLOOR if "sigmoid" in problem.name else 0.0, epochs)
    return _finish(figure, problem, panels.flat, 4, stem)


def work(problem: Problem, rows: Mapping[int, Sequence[Line]], what: str, epochs: int, stem: Path) -> Path:
    """``what`` against epochs, gradient evaluations, time and bytes; a row for each N. Time for runs made alike."""
    every = [line for lines in rows.values() for line in lines]
    machine = _machine_of_most(every)
    shown = [one for one in ACROSS if one[0] != "seconds" or machine is not None]
    figure = new_figure(3 * len(shown), 1.4 + 2.5 * len(rows))
    panels = figure.subplots(len(rows), len(shown), sharex="col", sharey=True, squeeze=False)
    for row, (N, lines) in enumerate(rows.items()):
        for column, (across, _, scale) in enumerate(shown):
            quiet(panels[row, column])
            for line in lines:
                if across != "seconds" or line.machines == {machine}:
                    line.draw(panels[row, column], what, across, scale, across != "epochs")
        panels[row, 0].set_ylabel(f"N = {N}\n{WORDS[what]}")
    _height(panels[0, 0], what, problem)
    for column, (across, words, _) in enumerate(shown):
        panels[-1, column].set_xlabel(words + _conditions(every, machine) if across == "seconds" and machine is not None else words)
        if across == "epochs":
            panels[0, column].set_xlim(0, epochs)
        else:
            _logarithmic(panels[0, column], panels[:, column])
    return _finish(figure, problem, panels.flat, 3 if len(shown) > 3 else 2, stem)  # of the legend, as wide as the panels


def _machine_of_most(lines: Iterable[Line]) -> tuple[str, ...] | None:
    """What most lines had whose runs all had the same and noted it; None if that is fewer than two, or fewer than half of all."""
    machines = [line.machines for line in lines]
    known = Counter(machine for had in machines if len(had) == 1 for machine in had if all(machine))
    machine, count = max(known.items(), key=lambda pair: pair[1], default=(None, 0))
    return machine if count >= 2 and 2 * count >= len(machines) else None


def _conditions(lines: Iterable[Line], machine: tuple[str, ...]) -> str:
    """What to say of them beside seconds."""
    words = "" if machine[-1] == "1" else f", {machine[-1]} runs at a time"
    return words + ("" if all(line.machines == {machine} for line in lines) else "\n(lines made otherwise left out)")


def _logarithmic(first: Axes, column: Iterable[Axes]) -> None:
    """A logarithmic axis that begins where the first curve comes into sight."""
    bottom, top = first.get_ylim()
    seen = [np.asarray(line.get_xdata(), float)[inside] for panel in column for line in panel.lines
            if (inside := (np.asarray(line.get_ydata()) >= bottom) & (np.asarray(line.get_ydata()) <= top)).any()]  # fmt: skip
    first.set_xscale("log")
    if seen:
        low, high = max(min(x.min() for x in seen), 1e-3 * max(x.max() for x in seen)), max(x.max() for x in seen)
        first.set_xlim(0.9 * low, 1.15 * high)
        _ticks(first.xaxis, low, high)


def _ticks(axis: Axis, low: float, high: float) -> None:
    """Ticks of a logarithmic axis in plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(base=10, subs=(1.0,) if high > 60 * low else (1.0, 3.0) if high > 8 * low else (1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1000 else f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _height(panel: Axes, what: str, problem: Problem) -> None:
    """The part of the axis where methods differ, stretched towards what cannot be passed."""
    if what == "accuracy" and problem.data == "mnist":
        panel.set_yscale("function", functions=(lambda y: -np.log(np.maximum(100 - y, 0.1)), lambda v: 100 - np.exp(-v)))
        panel.set_yticks(TICKS["mnist"], [f"{tick:g}" for tick in TICKS["mnist"]])
        panel.set_ylim(BELOW["mnist"], 98.9)
    elif what == "accuracy":
        panel.set_ylim(BELOW.get(problem.data), None)
    elif "sigmoid" in problem.name:
        panel.set_yscale("function", functions=(lambda y: np.log(np.maximum(y - FLOOR, 1e-4)), lambda v: FLOOR + np.exp(v)))
        panel.set_yticks(TICKS["sigmoid"], [f"{tick:g}" for tick in TICKS["sigmoid"]])
        panel.set_ylim(1.4625, 2.4)
    else:
        panel.set_yscale("log")
        plain_numbers(panel.yaxis, *panel.get_ylim())


def _down_to_what_is_seen(row: Sequence[Axes], floor: float, epochs: int) -> None:
    """Losses end where the least one within ``epochs`` does, not where runs and published curves end that go on."""
    lines = [line for panel in row for line in panel.lines]
    seen = [y[x <= epochs] for line in lines for x, y in [(np.asarray(line.get_xdata()), np.asarray(line.get_ydata(), float))]]
    least = min((y.min() for y in seen if len(y)), default=floor)
    if least > floor:
        row[0].set_ylim(bottom=floor + 0.8 * (least - floor))


def _finish(figure: Figure, problem: Problem, panels: Iterable[Axes], columns: int, stem: Path) -> Path:
    """Title, legend and file."""
    figure.suptitle(problem.title, fontsize=11)
    legend_below(figure, panels, columns)
    stem.parent.mkdir(parents=True, exist_ok=True)
    pdf, png = save(figure, stem)
    pdf.unlink()  # the picture for a page is enough
    return png
