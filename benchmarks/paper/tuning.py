"""No tuning: the same problems from other first radii and under other caps of the radius."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from paper.bars import CIFAR, MNIST, STEP
from paper.cases import READ, Case, ours
from paper.limits import Limits
from paper.store import Store
from paper.table import Row, Table, marked, mean, spread

STARTS = (1e-3, 1e-2, 0.1, 10.0)  # 1 is ours: the row without a cap
CAPS = (8.0, 32.0, 128.0, 1e30)
ENDS = (STARTS[0], STARTS[-1], CAPS[0], CAPS[-1])  # of both ranges: these with all seeds, those between with the first
NO_CAP = "--trust_region.radius_max 1e+30"
WORK = 0.15  # that evaluations to the target may change
RULE = (
    "Delta0 is changed under no cap at all (radius_max 1e30), the cap with the default Delta0. Accuracy: at the last outer iteration "
    "within the budget of the bars, mean of the seeds: all of them at both ends of each range, the first one between. Change: largest "
    "difference of a row's mean to that of the default constants with the same seeds; for the "
    "evaluations to the target (first outer iteration whose test accuracy has it) as a share of the default's. "
    f"Losses alone in passes, beside those to the target. A run whose step left the radius fails the bar. {READ}."
)


@dataclass(frozen=True)
class Place:
    """Where it is shown, and by how much accuracy may change."""

    problem: str
    subdomains: int
    until: Limits
    points: float

    @property
    def base(self) -> Case:
        return ours(self.problem, self.subdomains, self.until)

    def variants(self) -> list[tuple[str, Case]]:
        starts = [(start, f"Delta0 {start:g}", f"start-{start:g}", f"{NO_CAP} --trust_region.radius_init {start:g}") for start in STARTS]
        caps = [(cap, f"cap {_cap(cap)}", f"cap-{_cap(cap)}", f"--trust_region.radius_max {cap:g}") for cap in CAPS]
        made = [(value, label, ours(self.problem, self.subdomains, self.until, more, name)) for value, label, name, more in starts + caps]
        return [(label, case if value in ENDS else replace(case, seeds=1)) for value, label, case in made]


def _cap(cap: float) -> str:
    return "none" if cap >= 1e30 else f"{cap:g}"


PLACES = (
    Place("mnist-10k", 2, MNIST, 0.2), Place("mnist-10k", 16, MNIST, 0.2), Place("cifar10-10k", 2, CIFAR, 0.5),
    Place("cifar10-10k", 16, CIFAR, 0.5),
)  # fmt: skip


def cases(places: tuple[Place, ...] = PLACES) -> list[Case]:
    """What must have run."""
    return [case for place in places for case in (place.base, *(case for _, case in place.variants()))]


def _row(label: str, case: Case, store: Store) -> Row:
    curves = store.finished(case)
    cuts = {curve.seed: cut["accuracy"] for curve in curves if (cut := curve.cut(case.until))}
    reached = {curve.seed: curve.head(case.until).reached(case.problem.target) for curve in curves}
    passes, values = ({seed: at.get(name, math.nan) for seed, at in reached.items()} for name in ("passes", "values"))
    found: Row = {
        "problem": case.problem.title, "subdomains": case.subdomains, "setting": label, "options": " ".join(case.words),
        "shown": spread(list(cuts.values())), "accuracy": mean(cuts.values()), "passes": mean(passes.values()),
        "values": mean(values.values()), "missed": sum(map(math.isnan, passes.values())), "runs": len(cuts),
        "wanted": case.seeds, "accuracies": cuts, "passes_to_target": passes,
        "left_radius": [curve.seed for curve in curves if curve.farthest > STEP],
    }  # fmt: skip
    return marked(found, "setting", curves)


def summary(place: Place, base: Row, rows: list[Row], seeds: int) -> Row:
    """Largest changes of a place so far, each with the seeds of its row alone; a verdict when all runs are there.

    ``runs``: seeds of the rows at the ends, and of those between.
    """
    there = [row for row in rows if row["runs"] and row["accuracies"].keys() <= base["accuracies"].keys()]
    points = [abs(_change(row, base, "accuracies")) for row in there]
    needed = [mean(base["passes_to_target"][seed] for seed in row["accuracies"]) for row in there]
    work = [abs(_change(row, base, "passes_to_target") / usual) for row, usual in zip(there, needed, strict=True)]
    complete = len(there) == len(rows) and all(row["runs"] >= (row["wanted"] or seeds) for row in (base, *rows))
    reached = bool(work) and all(map(math.isfinite, work))
    stayed = not any(row["left_radius"] for row in (base, *there))
    return {
        "problem": base["problem"], "subdomains": place.subdomains, "default": base["shown"], "rows": len(there),
        "points": max(points, default=math.nan), "points_bar": place.points, "passes": base["passes"],
        "work": 100 * max(work) if reached else math.nan, "work_bar": 100 * WORK,
        "values": base["values"], "runs": f"{_seeds(there, 0)}, {_seeds(there, 1)}",
        "met": (max(points) <= place.points and reached and max(work) <= WORK and stayed) if complete else None,
    }  # fmt: skip


def _seeds(rows: list[Row], wanted: int) -> int:
    """Fewest seeds of the rows that are to have so many (0: all)."""
    return min((row["runs"] for row in rows if row["wanted"] == wanted), default=0)


def _change(row: Row, base: Row, what: str) -> float:
    """Mean of a row less that of the default with the same seeds."""
    return mean(row[what][seed] - base[what][seed] for seed in row["accuracies"])


def tables(store: Store, seeds: int, places: tuple[Place, ...] = PLACES) -> list[Table]:
    """Every setting, and the largest changes."""
    lines: list[Row] = []
    sums: list[Row] = []
    begun = any(store.finished(case) for place in places for _, case in place.variants())
    for place in places if begun else ():
        base = _row("default", place.base, store)
        rows = [_row(label, case, store) for label, case in place.variants()]
        lines += [base, *rows]
        used = [curve for case in cases((place,)) for curve in store.finished(case)]
        sums.append(marked(summary(place, base, rows, seeds), "problem", used))
    curves = [curve for case in cases(places) for curve in store.curves(case)]
    changes = Table("tuning", "No tuning: the largest changes", RULE, SUMS, sums, curves)
    found = (changes, Table("tuning-rows", "No tuning: every setting", "", LINES, lines, curves))
    return [table for table in found if table.rows]


SUMS = {
    "problem": ("problem", ""), "subdomains": ("N", "d"), "default": ("default constants %", ""),
    "points": ("largest change, points", ".2f"), "points_bar": ("bar", ".1f"),
    "passes": ("evaluations to target", ".1f"), "values": ("losses alone", ".1f"), "work": ("largest change, %", ".0f"),
    "work_bar": ("bar", ".0f"), "rows": ("settings", "d"), "runs": ("seeds: ends, between", ""), "met": ("met", ""),
}  # fmt: skip
LINES = {
    "problem": ("problem", ""), "subdomains": ("N", "d"), "setting": ("setting", ""), "shown": ("test accuracy %", ""),
    "passes": ("evaluations to target", ".1f"), "values": ("losses alone", ".1f"), "missed": ("runs without it", "d"),
    "runs": ("seeds", "d"),
}  # fmt: skip
