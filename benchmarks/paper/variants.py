"""Ablation, and whether second order earns its place: other settings against ours at the same budget."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from paper.bars import CIFAR, FULL, MNIST
from paper.cases import PROBLEMS, Case, ours
from paper.curves import Curve, Store
from paper.limits import Limits
from paper.table import Row, Table, mean, spread


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

    name: str  # part of the folder
    label: str
    options: str
    preset: str = ""  # in place of ours

    def case(self, place: Place) -> Case:
        if not self.name:
            return ours(place.problem, place.subdomains, place.until)
        if not self.preset:
            return ours(place.problem, place.subdomains, place.until, self.options, self.name)
        name, options = f"{place.problem}/{self.name}-N{place.subdomains}", f"--preset {self.preset} {self.options}".strip()
        return Case(name, PROBLEMS[place.problem], self.label, options, place.until, place.subdomains)


OURS = Variant("", "ours", "")
PLACES = (Place("mnist-10k", 2, MNIST), Place("mnist-10k", 16, MNIST), Place("mnist-full", 4, FULL), Place("cifar10-10k", 2, CIFAR))
ABLATION = (
    OURS,
    Variant("sum", "sum instead of mean", "--solver.combine sum"),
    Variant("global", "with a global L-SR1 step", "--global_step.solver lsr1"),
    Variant("no-momentum", "no momentum", "--local.momentum 0"),
    Variant("one-pass", "one local pass", "--local.passes 1"),
    Variant("four-passes", "four local passes", "--local.passes 4"),
    Variant("no-overlap", "no overlap", "--data.overlap 0"),
    Variant("cap-none", "no cap on the radius", "--trust_region.radius_max 1e+30"),
)
ORDERS = (
    OURS,
    Variant("lsr1", "L-SR1, nu = 10, mean, own radius", "", "default"),
    Variant("lsr1-local", "the same, no global step", "--global_step.solver none", "default"),
    Variant("lsr1-inconsistent", "the first without r_i (4)", "--solver.consistent false", "default"),
    Variant("first", "first order in its place", "--local.solver first --global_step.solver first", "default"),
)
EVALUATIONS = (
    Place("mnist-10k", 2, Limits(passes=24)), Place("mnist-10k", 8, Limits(passes=24)), Place("mnist-full", 4, Limits(passes=60)),
    Place("cifar10-10k", 2, Limits(passes=24)), Place("cifar10-10k", 8, Limits(passes=24)),
)  # fmt: skip
ABLATION_RULE = (
    "Test accuracy at the last outer iteration within the budget of the bars, mean [least, largest] of the seeds; one thing changed."
)
ORDER_RULE = (
    "Test accuracy at the last outer iteration within the same number of gradient evaluations (24 passes; full batch: 60), mean [least, "
    "largest] of the seeds."
)


def cases(variants: tuple[Variant, ...], places: tuple[Place, ...]) -> list[Case]:
    """What must have run."""
    return [variant.case(place) for variant in variants for place in places]


def _cell(case: Case, store: Store) -> tuple[list[float], list[Curve]]:
    curves = [curve for curve in store.curves(case) if curve.enough(case.until)]
    cuts = [curve.cut(case.until) for curve in curves]
    return [cut["accuracy"] for cut in cuts if cut], curves


def _alike(some: list[Curve], others: list[Curve]) -> bool:
    """Whether all runs of the same seeds have the same losses: a setting that was not heeded."""
    theirs = {curve.seed: curve for curve in others}
    pairs = [(curve, theirs[curve.seed]) for curve in some if curve.seed in theirs]
    return bool(pairs) and all(np.array_equal(a.loss[: len(b.loss)], b.loss[: len(a.loss)]) for a, b in pairs)


def table(name: str, title: str, rule: str, variants: tuple[Variant, ...], places: tuple[Place, ...], store: Store) -> list[Table]:
    """A row for each variant, a column for each place; nothing without runs but for ours."""
    rows: list[Row] = []
    used: list[Curve] = []
    bases = {place: variants[0].case(place) for place in places}
    for variant in variants:
        same = True
        row: Row = {"variant": variant.label, "options": variant.options}
        seeds = 0
        for place in places:
            accuracies, curves = _cell(variant.case(place), store)
            row[place.title], row[f"{place.title} mean"] = spread(accuracies), mean(accuracies)
            used, seeds = used + curves, max(seeds, len(accuracies))
            same &= variant.case(place) == bases[place] or _alike(curves, [c for c in store.curves(bases[place]) if c.enough(place.until)])
        row["variant"] += " (no effect: the same runs)" if same and variant is not variants[0] else ""
        rows.append({**row, "runs": seeds})
    if not any(row["runs"] for row in rows[1:]):
        return []
    columns = {"variant": ("variant", ""), **{place.title: (place.title, "") for place in places}, "runs": ("seeds", "d")}
    return [Table(name, title, rule, columns, rows, used)]


def tables(store: Store) -> list[Table]:
    """Both."""
    return [
        *table("ablation", "Ablation", ABLATION_RULE, ABLATION, PLACES, store),
        *table("second-order", "Second order", ORDER_RULE, ORDERS, EVALUATIONS, store),
    ]
