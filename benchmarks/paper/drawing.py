"""The pictures: curves with bands from the least to the largest of the seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from apts_mpi.study.style import COLOURS, legend_below, new_figure, plain_numbers, quiet, save
from paper.cases import Case, Problem
from paper.curves import Curve, Numbers, Store
from paper.published import Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes

POINTS = 240  # of a curve
ACROSS = (
    ("epochs", "epochs", 1.0), ("passes", "gradient evaluations, passes", 1.0), ("seconds", "time, s", 1.0),
    ("bytes", "reduced vectors, MB", 1e-6),
)  # fmt: skip
BLACK = COLOURS[-1]
WORDS = {"loss": "training loss", "accuracy": "test accuracy, %"}


@dataclass(frozen=True)
class Line:
    """The runs of one case under one name."""

    label: str
    curves: Sequence[Curve]

    @classmethod
    def of(cls, label: str, case: Case, store: Store) -> Line:
        """All its runs that are there, whole or not."""
        return cls(label, store.curves(case))

    def band(self, what: str, across: str, log: bool) -> tuple[Numbers, Numbers, Numbers, Numbers] | None:
        """x, least, mean and largest over the seeds, where all of them have been; None without runs."""
        pairs = [curve.losses(across) if what == "loss" else curve.accuracies(across) for curve in self.curves]
        pairs = [(x, y) for x, y in pairs if len(x) > 1]
        if not pairs:
            return None
        low, high = max(x[0] for x, _ in pairs), min(x[-1] for x, _ in pairs)
        low = max(low, min(x[1] for x, _ in pairs)) if log and low <= 0 else low
        x = np.geomspace(low, high, POINTS) if log else np.linspace(low, high, POINTS)
        if len(pairs) == 1:  # its own points
            x = pairs[0][0][pairs[0][0] >= low]
        rows = np.array([np.interp(x, *pair) for pair in pairs])
        return x, rows.min(0), rows.mean(0), rows.max(0)


def _draw(panel: Axes, line: Line, what: str, across: str, scale: float, colour: str, log: bool) -> None:
    found = line.band(what, across, log)
    if found is not None:
        x, low, middle, high = found
        panel.fill_between(scale * x, low, high, color=colour, alpha=0.2, linewidth=0)
        panel.plot(scale * x, middle, color=colour, linewidth=1.5, label=line.label)


def _draw_published(panel: Axes, series: Series, what: str, colour: str, label: str) -> None:
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
    for column, (order, words) in enumerate((("o1", "first order"), ("o2", "second order, L-SR1"))):
        lines = by_order[order]
        for row, what in enumerate(("loss", "accuracy")):
            panel = panels[row, column]
            quiet(panel)
            for index, line in enumerate(lines):
                colour = BLACK if line.label.startswith("Adam") else COLOURS[index]
                _draw(panel, line, what, "epochs", 1.0, colour, False)
                series = published.get(order, {}).get(line.label)
                if series is not None:
                    _draw_published(panel, series, what, colour, f"{line.label.partition(',')[0]}, published")
        panels[0, column].set_title(f"Algorithm 1, {words}, {combine} of the steps", fontsize=10)
        panels[1, column].set_xlabel("epochs")
    _heights(panels[0, 0], panels[1, 0], problem)
    panels[1, 0].set_xlim(0, epochs)
    for row, what in enumerate(("loss", "accuracy")):
        panels[row, 0].set_ylabel(WORDS[what])
    figure.suptitle(problem.title, fontsize=11)
    legend_below(figure, panels.flat, 4)
    return _save(figure, stem)


def work(problem: Problem, rows: Mapping[int, Sequence[Line]], what: str, stem: Path) -> Path:
    """``what`` against epochs, gradient evaluations, time and bytes; a row for each number of subdomains."""
    figure = new_figure(12, 1.4 + 2.5 * len(rows))
    panels = figure.subplots(len(rows), len(ACROSS), sharex="col", sharey=True, squeeze=False)
    longest = max((curve.used.epochs[-1] for lines in rows.values() for line in lines if not line.label.startswith("Adam")
                   for curve in line.curves), default=1.0)  # fmt: skip
    for row, (N, lines) in enumerate(rows.items()):
        for column, (across, words, scale) in enumerate(ACROSS):
            panel, log = panels[row, column], across != "epochs"
            quiet(panel)
            for index, line in enumerate(lines):
                _draw(panel, line, what, across, scale, BLACK if line.label.startswith("Adam") else COLOURS[index], log)
            if log:
                panel.set_xscale("log")
            if row == len(rows) - 1:
                panel.set_xlabel(words)
        panels[row, 0].set_ylabel(f"N = {N}\n{WORDS[what]}")
    panels[0, 0].set_xlim(0, longest)
    for panel in panels[0, 1:]:
        plain_numbers(panel.xaxis, *panel.get_xlim())
    _heights(panels[0, 0] if what == "loss" else None, panels[0, 0] if what == "accuracy" else None, problem)
    figure.suptitle(problem.title, fontsize=11)
    legend_below(figure, panels.flat, 3)
    return _save(figure, stem)


def _heights(loss: Axes | None, accuracy: Axes | None, problem: Problem) -> None:
    """The part of the axis where methods differ."""
    if accuracy is not None:
        accuracy.set_ylim(*HEIGHTS.get(problem.data, (None, None)))
    if loss is not None and "sigmoid" not in problem.name:
        loss.set_yscale("log")
        plain_numbers(loss.yaxis, *loss.get_ylim())


HEIGHTS = {"mnist": (84, 99), "cifar10": (30, 57)}


def _save(figure: object, stem: Path) -> Path:
    stem.parent.mkdir(parents=True, exist_ok=True)
    pdf, png = save(figure, stem)  # type: ignore[arg-type]
    pdf.unlink()  # the picture for a page is enough
    return png
