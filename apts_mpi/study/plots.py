"""Runs as pictures: loss, test accuracy, radius and rho against iterations, work and time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from apts_mpi.rundir import Run
from apts_mpi.study.style import COLOURS, DASHES, new_figure, plain_numbers, quiet
from apts_mpi.study.tables import config, count, flat

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KINDS = (".png", ".pdf", ".svg")
RHO_RANGE = (-0.6, 1.6)

_ROWS = (("loss", "training loss"), ("accuracy", "test accuracy, %"), ("radius", "radius"), ("rho", "rho  (x: step rejected)"))
_ACROSS = (("iteration", "outer iteration"), ("passes", "gradient evaluations, passes over the training set"), ("time", "time, s"))


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
    figure = new_figure(12, 11, "plot")
    axes = figure.subplots(len(_ROWS), len(_ACROSS), sharex="col", sharey="row")
    for row, (name, title) in enumerate(_ROWS):
        for column, (across, label) in enumerate(_ACROSS):
            panel = axes[row, column]
            _panel(panel, runs, across, name)
            if column == 0:
                panel.set_ylabel(title)
            if row == len(_ROWS) - 1:
                panel.set_xlabel(label)
    lines, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(lines, names, loc="outside upper center", ncols=min(4, len(names)), frameon=False)
    return figure


def _panel(panel: Axes, runs: Sequence[Run], across: str, name: str) -> None:
    """One quantity of all runs against one measure of progress."""
    for index, (run, label) in enumerate(zip(runs, labels(runs), strict=True)):
        style = {"color": COLOURS[index % len(COLOURS)], "linestyle": DASHES[index // len(COLOURS) % len(DASHES)]}
        if across in run.columns and name in run.columns:
            _curve(panel, run, across, name, {**style, "label": label})
        elif not count(run):
            panel.plot([], [], label=label, color=style["color"], linestyle=style["linestyle"])
    quiet(panel)
    if name in ("loss", "radius"):
        panel.set_yscale("log")
        plain_numbers(panel.yaxis, *panel.get_ylim())
    if name == "rho":
        panel.set_ylim(*RHO_RANGE)
        _thresholds(panel, runs, named=across == _ACROSS[-1][0])


def _curve(panel: Axes, run: Run, across: str, name: str, style: dict[str, Any]) -> None:
    x, y = run.columns[across], run.columns[name].astype(np.float64)
    if name == "radius":
        panel.plot(x, y, drawstyle="steps-post", linewidth=1.2, **style)
    elif name == "rho":
        _ratios(panel, x, np.clip(y, *RHO_RANGE), run, str(style["color"]))
    else:
        known = np.isfinite(y)  # accuracy is not evaluated in every iteration
        marker = "." if 0 < known.sum() <= 60 else ""
        panel.plot(x[known], y[known], marker=marker, markersize=4, linewidth=1.4, **style)


def _ratios(panel: Axes, x: NDArray[Any], rho: NDArray[np.float64], run: Run, colour: str) -> None:
    """A dot for each accepted step, a cross for each rejected one; values out of sight lie on the border."""
    accepted = run.columns.get("accepted", np.ones(len(rho), np.int64)).astype(bool)
    for chosen, marker, size in ((accepted, ".", 18.0), (~accepted, "x", 16.0)):
        panel.scatter(x[chosen], rho[chosen], s=size, marker=marker, linewidths=0.9, color=colour, alpha=0.8, clip_on=False)


def _thresholds(panel: Axes, runs: Sequence[Run], named: bool) -> None:
    """Dashed lines at every eta0, eta1 and eta2 in use, named at the right border."""
    for name in ("eta0", "eta1", "eta2"):
        values = {flat(config(run)).get(f"trust_region.{name}", math.nan) for run in runs}
        for value in sorted(value for value in values if value > 0):  # nan: not on record; eta0 = 0: the same as eta1
            panel.axhline(value, color="0.45", linewidth=0.8, linestyle="--")
            if named:
                panel.annotate(
                    f"{name} {value:g}", (1.01, value), xycoords=("axes fraction", "data"), va="center", color="0.35", fontsize=8
                )


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
