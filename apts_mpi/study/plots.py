"""Runs as pictures: loss, test accuracy, radius and rho against iterations, work and time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from apts_mpi.rundir import Run
from apts_mpi.study.style import COLOURS, DASHES, doublings, legend, new_figure, plain_numbers, quiet
from apts_mpi.study.tables import config, count, flat

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KINDS = (".png", ".pdf", ".svg")
RHO_RANGE = (-0.6, 1.6)
LINE = 0.13  # height of a line of text on it

_ROWS = (
    ("loss", "training loss"), ("accuracy", "test accuracy, %"), ("radius", "radius"),
    ("rho", "rho  (x: step rejected;\ntriangle: beyond the axis)"),
)  # fmt: skip
_ACROSS = (("iteration", "outer iterations"), ("passes", "gradient evaluations, passes over the training set"), ("time", "time, s"))


def draw(runs: Sequence[Run], out: Path) -> None:
    """Draw ``runs``, of which one at least has begun, into ``out``; its ending chooses PNG, PDF or SVG. ValueError, ModuleNotFoundError."""
    if out.suffix.lower() not in KINDS:
        raise ValueError(f"a picture ends in {', '.join(KINDS)}, got {str(out)!r}")
    if not any(count(run) for run in runs):
        raise ValueError(f"no iteration on record in {', '.join(str(run.path) for run in runs) or 'no run at all'}; nothing to draw")
    if not out.absolute().parent.is_dir():
        raise ValueError(f"there is no folder {out.absolute().parent} for the picture; make it, or name another one")
    _figure(runs).savefig(out, dpi=150)


def _figure(runs: Sequence[Run]) -> Figure:
    rows = [row for row in _ROWS if row[0] == "loss" or any(len(_known(run, row[0])) for run in runs)]
    figure = new_figure(12, 0.6 + 2.6 * len(rows), "plot")
    axes = figure.subplots(len(rows), len(_ACROSS), sharex="col", sharey="row", squeeze=False)
    for row, (name, title) in enumerate(rows):
        for column, (across, _) in enumerate(_ACROSS):
            _panel(axes[row, column], runs, across, name)
        _upright(axes[row], runs, name)
        axes[row, 0].set_ylabel(title)
    for panel, (_, label) in zip(axes[-1], _ACROSS, strict=True):
        panel.set_xlabel(label)
    lines, names = axes[0, 0].get_legend_handles_labels()
    legend(figure, lines, names, 4, loc="outside upper center")
    return figure


def _known(run: Run, name: str) -> NDArray[np.float64]:
    """The values of a column that are numbers."""
    values = run.columns.get(name, np.empty(0)).astype(np.float64)
    return values[~np.isnan(values)]


def _panel(panel: Axes, runs: Sequence[Run], across: str, name: str) -> None:
    """One quantity of all runs against one measure of progress."""
    quiet(panel)
    for index, (run, label) in enumerate(zip(runs, labels(runs), strict=True)):
        style = {"color": COLOURS[index % len(COLOURS)], "linestyle": DASHES[index // len(COLOURS) % len(DASHES)]}
        if across in run.columns and name in run.columns:
            _curve(panel, run, across, name, {**style, "label": label})
        elif not count(run):
            panel.plot([], [], label=label, color=style["color"], linestyle=style["linestyle"])


def _curve(panel: Axes, run: Run, across: str, name: str, style: dict[str, Any]) -> None:
    """Loss and radius from where their step begins, accuracy and rho where it has ended."""
    (before, after), y = _progress(run, across), run.columns[name].astype(np.float64)
    if name == "radius":
        panel.plot(np.append(before, after[-1:]), np.append(y, y[-1:]), drawstyle="steps-post", linewidth=1.2, **style)
    elif name == "rho":
        _ratios(panel, after, y, run, str(style["color"]))
    else:
        x = after
        if name == "loss":  # that of the last theta is known where the method looked at it
            x, y = np.append(before, after[-1:]), np.append(y, run.columns.get("loss_new", np.full(len(y), np.nan))[-1:])
        known = np.isfinite(y)  # accuracy is not evaluated in every iteration
        marker = "." if 0 < known.sum() <= 60 else ""
        panel.plot(x[known], y[known], marker=marker, markersize=4, linewidth=1.4, **style)


def _progress(run: Run, across: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """How far the run was before and after each iteration."""
    found = run.columns[across].astype(np.float64)
    return (found, found + 1) if across == "iteration" else (np.append(0.0, found)[:-1], found)


def _ratios(panel: Axes, x: NDArray[Any], rho: NDArray[np.float64], run: Run, colour: str) -> None:
    """A dot for each accepted step, a cross for each rejected one, a triangle on the border for what lies beyond it."""
    accepted = run.columns.get("accepted", np.ones(len(rho), np.int64)).astype(bool)
    below, above = rho < RHO_RANGE[0], rho > RHO_RANGE[1]
    inside = ~below & ~above
    for chosen, marker, size in ((inside & accepted, ".", 18.0), (inside & ~accepted, "x", 16.0), (below, "v", 22.0), (above, "^", 22.0)):
        height = np.clip(rho[chosen], *RHO_RANGE)
        panel.scatter(x[chosen], height, s=size, marker=marker, linewidths=0.9, color=colour, alpha=0.8, clip_on=False)


def _upright(row: Sequence[Axes], runs: Sequence[Run], name: str) -> None:
    """The axis of a quantity, which the panels of a row share."""
    if name == "loss":
        row[0].set_yscale("log")
        plain_numbers(row[0].yaxis, *row[0].get_ylim())
    elif name == "radius":
        doublings(row[0], np.concatenate([_known(run, name) for run in runs]))
    elif name == "rho":
        row[0].set_ylim(*RHO_RANGE)
        _thresholds(row, [run for run in runs if len(_known(run, name))])


def _thresholds(row: Sequence[Axes], runs: Sequence[Run]) -> None:
    """Dashed lines at every eta0, eta1 and eta2 in use, named once at the right border and not on top of each other."""
    found: dict[float, list[str]] = {}
    for name in ("eta0", "eta1", "eta2"):
        for value in {flat(config(run)).get(f"trust_region.{name}", math.nan) for run in runs}:
            if value > 0:  # nan: not on record; eta0 = 0: the same as eta1
                found.setdefault(value, []).append(name)
    height = -math.inf
    for value, names in sorted(found.items()):
        for panel in row:
            panel.axhline(value, color="0.45", linewidth=0.8, linestyle="--")
        height, text = max(value, height + LINE), f"{', '.join(names)} {value:g}"
        row[-1].annotate(text, (1.01, height), xycoords=("axes fraction", "data"), va="center", color="0.35", fontsize=8)


def labels(runs: Sequence[Run]) -> list[str]:
    """The runs' names, with the folder before them where two are the same; unfinished and emulated ones say so."""
    names = [run.name for run in runs]
    full = [str(run.path) if names.count(run.name) > 1 else run.name for run in runs]
    made = [_made(run) if len(runs) > 1 else "" for run in runs]
    return [name + what + _marks(run) for name, what, run in zip(full, made, runs, strict=True)]


def _made(run: Run) -> str:
    """By which method, for a person who compares runs whose names are times."""
    known = {"method": "", "preset": "default"} | config(run)
    named = [known["method"], *([known["preset"]] if known["method"] == "apts" and known["preset"] != "default" else [])]
    return f", {' '.join(named)}" if known["method"] else ""


def _marks(run: Run) -> str:
    """What a reader must know about a curve: an unfinished run, a network that was not there."""
    network = run.provenance.get("emulated_network")
    ended = " (no iteration on record)" if not count(run) else "" if run.completion else " (did not finish)"
    return (f" ({network})" if network else "") + ended
