"""Reductions and gradient evaluations to a test accuracy, ours and those of the best Adam, with what its tuning cost."""

from __future__ import annotations

import math
from dataclasses import dataclass

from paper import rates
from paper.cases import Case, adam, ours
from paper.curves import Store
from paper.limits import Limits
from paper.rates import RATES, Found, Search
from paper.table import Row, Table, mean, spread

REDUCTIONS = 1 / 3  # of the best Adam's, at most
COMPARED = 10000  # the batch of Adam whose evaluations ours may not exceed
RULE = (
    "To the first outer iteration (for Adam: the first step) whose test accuracy is the target; mean [least, largest] of the seeds, a dash "
    "where a seed does not get there. Adam: for each batch the best of 13 learning rates, the one with the fewest gradient evaluations to "
    "the target, found with one seed and then run with all. Tuning: gradient evaluations of all runs of the search, in passes."
)


@dataclass(frozen=True)
class Race:
    """A problem, how long ours may take, and how many epochs of Adam each batch gets in its search."""

    problem: str
    until: Limits
    epochs: dict[int, int]  # by batch
    rates: tuple[float, ...] = RATES
    subdomains: tuple[int, ...] = (2, 16)  # of ours

    def search(self, batch: int) -> Search:
        until = Limits(epochs=self.epochs[batch])
        return Search(lambda rate: adam(self.problem, batch, rate, until, seeds=1), self.rates)

    def final(self, batch: int, store: Store) -> tuple[Case, Found] | None:
        """The best rate with all seeds, tested after every step; None before its search."""
        found = rates.best(self.search(batch), store, "target")
        if found is None:
            return None
        every = None if batch >= COMPARED else 1
        return adam(self.problem, batch, found.rate, Limits(epochs=self.epochs[batch]), every=every), found


RACES = (
    Race("mnist-10k", Limits(iterations=60), {1000: 8, 5000: 15, 10000: 30}),
    Race("cifar10-10k", Limits(iterations=50), {1000: 10, 5000: 25, 10000: 40}),
)


def searches(races: tuple[Race, ...] = RACES) -> list[Case]:
    """The first stage: all rates, one seed."""
    return [case for race in races for batch in race.epochs for case in race.search(batch).cases]


def finals(store: Store, races: tuple[Race, ...] = RACES) -> list[Case]:
    """The second stage: the best rates and ours, all seeds."""
    best = [found[0] for race in races for batch in race.epochs if (found := race.final(batch, store)) is not None]
    return best + [ours(race.problem, N, race.until) for race in races for N in race.subdomains]


def row(case: Case, store: Store, found: Found | None = None, label: str = "") -> Row:
    """What a case takes to its target."""
    curves = [curve for curve in store.curves(case) if curve.enough(case.until)]
    if case.seeds:
        curves = curves[: case.seeds]
    reached = [curve.reached(case.problem.target) for curve in curves]
    costs = {name: [at.get(name, math.nan) for at in reached] for name in ("reductions", "passes", "seconds")}
    return {
        "problem": case.problem.title, "target": case.problem.target, "method": label or f"{case.method}, N = {case.subdomains}",
        "options": " ".join(case.words), "runs": len(curves), "missed": sum(not at for at in reached),
        **{name: mean(values) for name, values in costs.items()},
        **{f"{name}_shown": spread(values, ".1f") for name, values in costs.items()},
        "tuning": found.passes if found else 0.0, "searched": found.runs if found else 0,
    }  # fmt: skip


def rows(race: Race, store: Store, seeds: int) -> list[Row]:
    """Adam's lines, then ours with their quotients and whether they are small enough."""
    lines: list[Row] = []
    by_batch: dict[int, Row] = {}
    for batch in race.epochs:
        best = race.final(batch, store)
        if best is not None:
            case, found = best
            by_batch[batch] = row(case, store, found, f"Adam {batch:,}, rate {found.rate:g}")
    lines += by_batch.values()
    complete = len(by_batch) == len(race.epochs) and all(one["searched"] == len(race.rates) for one in lines)
    least = min((one["reductions"] for one in lines if math.isfinite(one["reductions"])), default=math.nan)
    base = by_batch.get(COMPARED, {}).get("passes", math.nan)
    for N in race.subdomains:
        mine = row(ours(race.problem, N, race.until), store)
        if not mine["runs"]:
            continue
        mine |= {"reductions_ratio": mine["reductions"] / least, "passes_ratio": mine["passes"] / base}
        known = complete and mine["runs"] >= seeds and all(one["runs"] >= seeds for one in lines)
        mine["met"] = (mine["reductions_ratio"] <= REDUCTIONS and mine["passes_ratio"] <= 1) if known else None
        lines.append(mine)
    return lines


def tables(store: Store, seeds: int, races: tuple[Race, ...] = RACES) -> list[Table]:
    """The race to the targets."""
    lines = [line for race in races for line in rows(race, store, seeds)]
    curves = [curve for case in [*searches(races), *finals(store, races)] for curve in store.curves(case)]
    return [Table("adam", "To the target", RULE, COLUMNS, lines, curves)] if lines else []


COLUMNS = {
    "problem": ("problem", ""), "target": ("target %", ".0f"), "method": ("method", ""), "reductions_shown": ("reductions", ""),
    "passes_shown": ("gradient evaluations", ""), "seconds": ("seconds", ".0f"), "tuning": ("tuning, evaluations", ".0f"),
    "reductions_ratio": ("reductions / best Adam's (bar 0.33)", ".2f"),
    "passes_ratio": (f"evaluations / Adam {COMPARED:,}'s (bar 1)", ".2f"), "met": ("met", ""), "runs": ("seeds", "d"),
}  # fmt: skip
