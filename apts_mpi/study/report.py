"""The report of a scaling study: report.md, report.html, tables.tex and the figures, from its points alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from apts_mpi.study import report_tables as tables
from apts_mpi.study import report_words as words
from apts_mpi.study.document import Bullets, Code, Heading, Paragraph, Part, Picture, html, latex, markdown, numbered
from apts_mpi.study.figures import draw_all
from apts_mpi.study.figures_scaling import Predictions
from apts_mpi.study.points import Points
from apts_mpi.study.statistics import Series, all_series

FIGURES = "figures"


def write_report(
    points: Points, out: Path, predictions: Mapping[str, Mapping[str, float]] | None = None, extra: Sequence[Part] = ()
) -> list[Path]:
    """Write the report into ``out`` and return its files; ValueError without points, ModuleNotFoundError, OSError.

    ``predictions`` maps runs to "seconds" of an outer iteration and their "floor"; ``extra`` is put before the methods.
    """
    series = all_series(points)
    out.mkdir(parents=True, exist_ok=True)
    pictures = draw_all(points, out / FIGURES, predictions or {})
    title = points.title or points.name
    plain = list(_parts(points, series, pictures, predictions or {}, extra))
    parts = numbered(plain)
    texts = {"report.md": markdown(title, parts, out), "report.html": html(title, parts, out), "tables.tex": latex(plain)}
    for name, text in texts.items():
        (out / name).write_text(text, encoding="utf-8")
    drawn = [path for picture in pictures for path in (picture.path, picture.path.with_suffix(".pdf"))]
    return [*(out / name for name in texts), *drawn]


def _parts(
    points: Points, series: Sequence[Series], pictures: Sequence[Picture], predictions: Predictions, extra: Sequence[Part]
) -> Iterator[Part]:
    yield from (Paragraph(f"WARNING: {text}", loud=True) for text in [*words.warnings(points), *words.noise(series)])
    yield from _results(points, series)
    yield Heading("Where APTS does not win")
    yield Bullets(tuple(words.losses(points, series)))
    yield from _tuning(points, series)
    yield from _model(series, predictions)
    yield Heading("Figures")
    yield from pictures
    yield from extra
    yield from _methods(points, series)


def _results(points: Points, series: Sequence[Series]) -> Iterator[Part]:
    yield Heading("Results")
    yield from map(Paragraph, words.summary(points, series))
    groups = dict.fromkeys((one.scaling, one.network) for one in series)
    for scaling, network in groups:
        group = [one for one in series if (one.scaling, one.network) == (scaling, network)]
        yield tables.speed(group, scaling, network)
        yield tables.work(group, scaling, network, points.target_accuracy)
    yield Heading("The base case")
    yield Bullets(tuple(words.base_case(series)))
    yield from _laws(points, series)


def _laws(points: Points, series: Sequence[Series]) -> Iterator[Part]:
    yield Heading("Speed-up and parallel share")
    clocks, fits = tables.clocks(series, points.target_accuracy), tables.fits(series, points.target_accuracy)
    yield from [clocks] if clocks.rows else [Paragraph("No method has two rank counts with seconds that count, so there is no speed-up.")]
    if fits.rows:
        yield fits
        yield Paragraph(
            "With x = P / P0: Amdahl S = 1 / ((1 - p) + p / x), Gustafson S = x - (1 - p)(x - 1); p by least squares for each repetition. "
            "Two rank counts fix p and leave nothing to be tested: that is an interpolation, and says nothing about more ranks. "
            "A p below zero is none: more ranks take longer."
        )


def _tuning(points: Points, series: Sequence[Series]) -> Iterator[Part]:
    if not points.tuning:
        return
    yield Heading("What the search for the learning rate costs")
    yield tables.tuning(points)
    if math.isfinite(points.target_accuracy):
        yield tables.with_tuning(points, series)


def _model(series: Sequence[Series], predictions: Predictions) -> Iterator[Part]:
    table = tables.errors(series, predictions)
    if table.rows:
        yield Heading("Predicted and measured")
        yield table


def _methods(points: Points, series: Sequence[Series]) -> Iterator[Part]:
    yield Heading("Runs left out or marked")
    yield Bullets(tuple(words.marked(points, series)))
    yield Heading("How it was measured")
    yield from map(Paragraph, words.methods(points, series))
    yield Bullets(tuple(words.provenance(points)))
    yield Heading("The study file", 3)
    yield Code(points.study, "toml")
