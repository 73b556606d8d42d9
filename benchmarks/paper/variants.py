"""Ablation, and whether second order earns its place: other settings against ours at the same budget."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from paper.bars import CIFAR, FULL, MNIST
from paper.cases import LAST, MEAN, NO_METRIC, PROBLEMS, READ_BOTH, Case, ours, preset
from paper.curves import Curve, Numbers
from paper.limits import Limits
from paper.store import Store
from paper.table import SEVERAL, Row, Table, mean, mixed, spread


@dataclass(frozen=True)
class Place:
    """A column of the table."""

    problem: str
    subdomains: int
    until: Limits

    @property
    def title(self) -> str:
        return f"{self.problem}, N = {self.subdomains}"


@dataclass(frozen=True)
class Variant:
    """A row: options on top of ours, or of another preset."""

    name: str  # part of the folder; empty: without options
    label: str
    options: str
    preset: str = ""  # in place of ours
    full_batch: bool = False  # does nothing on minibatches, where it is not run

    def applies(self, place: Place) -> bool:
        return PROBLEMS[place.problem].batches == 1 or not self.full_batch

    def case(self, place: Place) -> Case:
        if not self.preset:
            return ours(place.problem, place.subdomains, place.until, self.options, self.name)
        return replace(preset(place.problem, self.preset, place.subdomains, place.until, self.options, self.name), seeds=0)


FIRST = "--local.solver first --global_step.solver first"
OURS = Variant("", "ours", "")
PLACES = (Place("mnist-10k", 2, MNIST), Place("mnist-10k", 16, MNIST), Place("mnist-full", 4, FULL), Place("cifar10-10k", 2, CIFAR))
ABLATION = (
    OURS,
    Variant("last", "the last iterate in place of the mean", LAST),
    Variant("sum", "sum instead of mean", "--solver.combine sum"),
    Variant("global", "with a global L-SR1 step", "--global_step.solver lsr1"),
    Variant("no-metric", "no metric, full batch alone", NO_METRIC, full_batch=True),
    Variant("alone", "no momentum of the summed steps", "--solver.momentum false"),
    Variant("no-momentum", "no momentum inside a sweep", "--local.momentum 0"),
    Variant("one-pass", "one local pass", "--local.passes 1"),
    Variant("four-passes", "four local passes", "--local.passes 4"),
    Variant("no-overlap", "no overlap", "--data.overlap 0"),
    Variant("chunks-8", "8 chunks at least, not 20", "--local.chunks_min 8"),
    Variant("eta1-0.5", "eta1 = 0.5, not 0.25", "--trust_region.eta1 0.5"),
    Variant("cap-8", "a cap of 8 on the radius, not 1e6", "--trust_region.radius_max 8"),
    Variant("reached-0", "the ball grows however short the steps are", "--trust_region.reached 0"),
)
ORDERS = (
    OURS,
    Variant("last", "ours, the last iterate", LAST),
    Variant("", "L-SR1, nu = 10, own radius", "", "lsr1"),
    Variant("mean", "L-SR1, the mean of the iterates", MEAN, "lsr1"),
    Variant("local", "L-SR1, no global step", "--global_step.solver none", "lsr1"),
    Variant("local-mean", "L-SR1, no global step, the mean of the iterates", f"--global_step.solver none {MEAN}", "lsr1"),
    Variant("inconsistent", "L-SR1 without r_i (4)", "--solver.consistent false", "lsr1"),
    Variant("inconsistent-mean", "L-SR1 without r_i (4), the mean of the iterates", f"--solver.consistent false {MEAN}", "lsr1"),
    Variant("first", "first order in its place", FIRST, "lsr1"),
    Variant("first-mean", "first order, the mean of the iterates", f"{FIRST} {MEAN}", "lsr1"),
)
EVALUATIONS = (
    Place("mnist-10k", 2, Limits(passes=24)), Place("mnist-10k", 8, Limits(passes=24)), Place("mnist-full", 4, Limits(passes=60)),
    Place("cifar10-10k", 2, Limits(passes=24)), Place("cifar10-10k", 8, Limits(passes=24)),
)  # fmt: skip
ABLATION_RULE = (
    "Test accuracy at the last outer iteration within the budget of the bars, mean [least, largest] of the seeds; one thing changed. "
    f"In brackets: the mean difference to ours with the same seeds. Losses alone in passes. {READ_BOTH}"
)
ORDER_RULE = (
    "Test accuracy at the last outer iteration within the same number of gradient evaluations (24 passes; full batch: 60), mean [least, "
    f"largest] of the seeds; in brackets: the mean difference to ours with the same seeds. Losses alone in passes. {READ_BOTH}"
)


def cases(variants: tuple[Variant, ...], places: tuple[Place, ...]) -> list[Case]:
    """What must have run."""
    return [variant.case(place) for variant in variants for place in places if variant.applies(place)]


def _cell(case: Case, base: Case, store: Store) -> tuple[Row, list[Curve]]:
    """What the runs of a case show at its budget, and beside them the mean difference to those of the base with the same seeds."""
    curves = store.finished(case)
    cuts, others = ({curve.seed: cut for curve in found if (cut := curve.cut(case.until))} for found in (curves, store.finished(base)))
    accuracies, several = [cut["accuracy"] for cut in cuts.values()], mixed(curves)
    change = mean(cuts[seed]["accuracy"] - others[seed]["accuracy"] for seed in cuts.keys() & others.keys())
    beside = f" ({change:+.2f})" if case != base and math.isfinite(change) else ""
    if case != base and _alike(curves, store.finished(base)):
        beside = " (no effect: the same runs)"
    row = {
        "": f"{spread(accuracies)}{f' ({SEVERAL})' if several else beside}", " mean": math.nan if several else mean(accuracies),
        " values": mean(cut["values"] for cut in cuts.values()), " change": change, " seeds": len(cuts),
    }  # fmt: skip
    return row, curves


def _alike(some: list[Curve], others: list[Curve]) -> bool:
    """Whether all runs of the same seeds have the same losses and accuracies: a setting that was not heeded."""
    theirs = {curve.seed: curve for curve in others}
    pairs = [(curve, theirs[curve.seed]) for curve in some if curve.seed in theirs]
    return bool(pairs) and all(_same(a.loss, b.loss) and _same(a.accuracy, b.accuracy) for a, b in pairs)


def _same(a: Numbers, b: Numbers) -> bool:
    return np.allclose(a[: len(b)], b[: len(a)], rtol=1e-5, atol=0, equal_nan=True)  # a record has six digits


def table(name: str, title: str, rule: str, variants: tuple[Variant, ...], places: tuple[Place, ...], store: Store) -> list[Table]:
    """A row for each variant, a column for each place; nothing without runs but for ours."""
    rows, used, there = list[Row](), list[Curve](), False
    for variant in variants:
        row: Row = {"variant": variant.label, "options": variant.case(places[0]).options}
        for place in places:
            if variant.applies(place):
                found, curves = _cell(variant.case(place), variants[0].case(place), store)
            else:
                found, curves = {"": "-", " mean": math.nan, " values": math.nan, " change": math.nan, " seeds": 0}, []
            row |= {f"{place.title}{what}": value for what, value in found.items()}
            used += curves
        counts = sorted({row[f"{place.title} seeds"] for place in places} - {0}) or [0]
        rows.append({**row, "runs": f"{counts[0]}" if len(counts) == 1 else f"{counts[0]}-{counts[-1]}"})
        there |= variant is not variants[0] and counts != [0]
    if not there:
        return []
    columns = {"variant": ("variant", "")}
    for place in places:
        columns |= {place.title: (place.title, ""), f"{place.title} values": ("losses alone", ".1f")}
    columns["runs"] = ("seeds", "")
    return [Table(name, title, rule, columns, rows, used)]


def tables(store: Store) -> list[Table]:
    """Both."""
    return [
        *table("ablation", "Ablation", ABLATION_RULE, ABLATION, PLACES, store),
        *table("second-order", "Second order", ORDER_RULE, ORDERS, EVALUATIONS, store),
    ]
