"""The pictures of a report: one set for each network, each as PDF for a paper and as small PNG for a page."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from apts_mpi.study import figures_scaling, figures_target, style
from apts_mpi.study.definition import SCALINGS
from apts_mpi.study.document import Picture
from apts_mpi.study.figures_scaling import Predictions, grouped
from apts_mpi.study.points import Points
from apts_mpi.study.statistics import Series, all_series, networks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TIMES = (
    "Time per outer iteration and per pass over the data against ranks: medians over the repetitions with 95 % intervals, "
    "and beside them the bounds. Hollow circles: oversubscribed, without meaning for speed."
)
_SPEEDUPS = "Speed-up and efficiency of an outer iteration, taken run by run, with 95 % intervals; the ideal, and the laws of the fits."
_COSTS = (
    "What the target takes, by method and rank count: medians with 95 % intervals. One rank sends no bytes, which a logarithmic axis "
    "cannot show."
)
_WAYS = "Training loss and test accuracy at the largest rank count; every run is a line."
_REGIONS = (
    "Where the time of an outer iteration goes, mean over ranks, median over runs. The regions test and io are not part of the seconds "
    "reported elsewhere."
)
_MODEL = "Predicted against measured seconds of an outer iteration; one mark for each case, the band is 10 %."

Drawn = tuple[str, str, "Figure"]  # name of the file, caption, picture


def called(network: str) -> str:
    """The network in words."""
    return f"emulated network {network}" if network else "real network"


def sentence(text: str) -> str:
    """The text with a capital letter at its beginning."""
    return text[:1].upper() + text[1:]


def draw_all(points: Points, folder: Path, predictions: Predictions) -> list[Picture]:
    """Draw every picture into ``folder`` and return the PNGs; ValueError, ModuleNotFoundError, OSError."""
    series = all_series(points)
    labels = list(dict.fromkeys(one.method for one in series))
    colours = {label: style.MANY[index % len(style.MANY)] for index, label in enumerate(labels)}
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for network in networks(points):
        for name, caption, figure in _of(points, [s for s in series if s.network == network], colours, predictions):
            only = next((f", {s} scaling" for s in SCALINGS if name.endswith(s)), "")
            figure.suptitle(f"{points.title or points.name}: {called(network)}{only}", fontsize=11)
            stem = "-".join([name, network or "real"])
            style.save(figure, folder / stem)
            found.append(Picture(folder / f"{stem}.png", f"{sentence(called(network))}. {caption}"))
    return found


def _of(points: Points, series: Sequence[Series], colours: dict[str, str], predictions: Predictions) -> Iterator[Drawn]:
    yield "times", _TIMES, figures_scaling.times(series, colours, predictions)
    if any(len(one.speedup("iteration_seconds")) > 1 for one in series):
        yield "speedup", _SPEEDUPS, figures_scaling.speedups(series, colours)
    for scaling, group in grouped(series).items():
        words = f"{scaling.capitalize()} scaling. "
        if math.isfinite(points.target_accuracy):
            yield f"target-{scaling}", words + _COSTS, figures_target.costs(group)
        yield f"curves-{scaling}", words + _WAYS, figures_target.ways(group, colours, points.target_accuracy)
        yield f"regions-{scaling}", words + _REGIONS, figures_target.regions(group)
    if any(run.run in predictions for one in series for case in one.cases for run in case.timed):
        yield "model", _MODEL, figures_scaling.accuracy_of_model(series, colours, predictions)
