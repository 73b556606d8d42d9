"""The paper's curves in numbers: test accuracy of Algorithm 1 as published, of its repetition, and of ours, after the same epochs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from paper.cases import ORDERS, PROBLEMS, READ, Case, ours, paper
from paper.curves import Curve, read_json
from paper.figures import FIGURES, SUBDOMAINS
from paper.limits import Limits
from paper.published import Series
from paper.store import Store
from paper.table import Row, Table, marked, mean, ranks, spread

TITLE = "The paper's curves, repeated"
WORDS = {"o1": "first order", "o2": "L-SR1"}
RULE = (
    "Test accuracy after the epochs of the figures; as published: mean [least, largest] of ten trials; ours and the repetition, preset "
    "`paper` with the sum of the steps: mean [least, largest] of the seeds. Inside: whether the mean of the repetition lies between the "
    f"least and the largest of the published trials. {READ}."
)


def row(problem: str, order: str, N: int, epochs: int, store: Store, published: Mapping[str, Series]) -> tuple[Row, list[Curve]]:
    """A line of the table and its runs; the line has ``runs`` 0 before Algorithm 1 has run."""
    until = Limits(epochs=epochs)
    theirs, there = _accuracies(paper(problem, N, order, "sum", until), store)
    mine, beside = _accuracies(ours(problem, N, until), store)
    low, high, middle = after(published.get(series_name(problem, order, N)), epochs)
    found: Row = {
        "problem": PROBLEMS[problem].title, "order": WORDS[order], "subdomains": N, "epochs": epochs, "runs": len(theirs),
        "accuracy": mean(theirs) if theirs else math.nan, "shown": spread(theirs), "ours": mean(mine) if mine else math.nan,
        "ours_shown": spread(mine), "published": middle, "ranks": ranks(there),
        "published_shown": "-" if math.isnan(middle) else f"{middle:.2f} [{low:.2f}, {high:.2f}]",
        "inside": "-" if math.isnan(middle) or not theirs else "yes" if low <= mean(theirs) <= high else "no",
    }  # fmt: skip
    return marked(found, "problem", there), [*there, *beside]


def _accuracies(case: Case, store: Store) -> tuple[list[float], list[Curve]]:
    curves = store.finished(case)
    return [cut["accuracy"] for curve in curves if (cut := curve.cut(case.until))], curves


def series_name(problem: str, order: str, N: int) -> str:
    """What the published curves call Algorithm 1 on a problem."""
    return f"{PROBLEMS[problem].published.partition(':')[0]}_{N}_{order}"


def after(series: Series | None, epochs: int) -> tuple[float, float, float]:
    """Least, largest and mean after so many epochs; nan where nothing was published."""
    at = np.flatnonzero(series.epochs == epochs) if series else np.zeros(0, int)
    if series is None or not len(at):
        return math.nan, math.nan, math.nan
    low, high, middle = (float(series.accuracy[end][at[0]]) for end in ("min", "max", "mean"))
    return low, high, middle


def tables(epochs: int, store: Store, published: Mapping[str, Series]) -> list[Table]:
    """One line for each problem, order and N that has run."""
    found = [row(problem, order, N, epochs, store, published)
             for problems in FIGURES.values() for problem in problems for order in ORDERS for N in SUBDOMAINS]  # fmt: skip
    lines = [line for line, _ in found if line["runs"]]
    curves = [curve for line, there in found if line["runs"] for curve in there]
    return [Table("repeated", TITLE, RULE, COLUMNS, lines, curves)] if lines else []


def kept(folder: Path) -> list[Table]:
    """The table as it was written to ``folder``, where the published curves are not at hand; none if it is not there."""
    rows = read_json(folder / "repeated.json").get("rows")
    return [Table("repeated", TITLE, RULE, COLUMNS, rows)] if isinstance(rows, list) and rows else []


COLUMNS = {
    "problem": ("problem", ""), "order": ("order", ""), "subdomains": ("N", "d"), "epochs": ("epochs", "d"),
    "published_shown": ("published %", ""), "shown": ("repeated %", ""), "inside": ("inside", ""), "ours_shown": ("ours %", ""),
    "runs": ("seeds", "d"),
}  # fmt: skip
