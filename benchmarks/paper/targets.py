"""Reductions and gradient evaluations to a test accuracy, ours and those of the best Adam, with what its tuning cost."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from paper import rates
from paper.cases import READ_BOTH, Case, adam, ours, ours_last
from paper.limits import Limits
from paper.rates import RATES, Found, Search
from paper.store import Store
from paper.table import Row, Table, marked, mean, ranks, spread, timed

REDUCTIONS = 1 / 3  # of the best Adam's, at most
COMPARED = 10000  # the batch of Adam whose evaluations ours may not exceed
RULE = (
    "To the first outer iteration (for Adam: the first step) whose test accuracy is the target; mean [least, largest] of the seeds, a dash "
    "where a seed does not get there. Adam: for each batch the best of 13 learning rates, the one with the fewest gradient evaluations to "
    "the target, found with one seed and then run with all; a rate of which a seed misses the target gives way to the next. Adam is there "
    "twice, mean: read at the mean of its iterates as ours is, with a search of its own from one rate below to three above the best of the "
    "last iterate, since a mean bears larger ones; ours is compared with the better one, and not "
    "before every batch has a rate whose seeds all get there. Beside that and without a verdict: ours at its last iterate, and in larger "
    "minibatches. Tuning: gradient evaluations of all runs of the search, in passes. Losses "
    f"alone in passes too; seconds of runs that had the machine for themselves. {READ_BOTH}"
)


@dataclass(frozen=True)
class Race:
    """A problem, how long ours may take, and how many epochs of Adam each batch gets in its search."""

    problem: str
    until: Limits
    epochs: dict[int, int]  # by batch
    rates: tuple[float, ...] = RATES
    subdomains: tuple[int, ...] = (2, 16)  # of ours
    larger: int = 0  # minibatch of one more row of ours, with the most subdomains, which is not judged; 0: none
    around: tuple[int, int] | None = (1, 3)  # rates below and above the best of the last iterate that the mean's search tries; None: all

    @property
    def judged(self) -> list[Case]:
        """Ours, with the minibatches that the problem names."""
        return [ours(self.problem, N, self.until) for N in self.subdomains]

    @property
    def beside(self) -> list[Case]:
        """Ours read at the last iterate, and in larger minibatches."""
        found = [ours_last(self.problem, N, self.until) for N in self.subdomains]
        if self.larger:
            words = f"--data.batch {self.larger}"
            found.append(ours(self.problem, max(self.subdomains), self.until, words, f"batch-{self.larger}"))
        return found

    @property
    def families(self) -> list[tuple[int, bool]]:
        """Batches of Adam, each read at the last iterate and at the mean."""
        return [(batch, mean) for mean in (False, True) for batch in self.epochs]

    def search(self, batch: int, store: Store, mean: bool = False) -> Search:
        """The rates of a batch; the mean's are known when the last iterate's have been searched, and none before."""
        until = Limits(epochs=self.epochs[batch])
        return Search(lambda rate: adam(self.problem, batch, rate, until, seeds=1, mean=mean), self._rates(batch, store, mean))

    def _rates(self, batch: int, store: Store, mean: bool) -> tuple[float, ...]:
        if not mean or self.around is None:
            return self.rates
        found = rates.best(self.search(batch, store), store, "target")
        if found is None:
            return ()
        best, (below, above) = self.rates.index(found.rate), self.around
        return self.rates[max(best - below, 0) : best + above + 1]

    def final(self, batch: int, store: Store, mean: bool = False) -> tuple[Case, Found] | None:
        """The best rate with all seeds, tested after every step; None before its search.

        A rate whose run missed the target with another seed is none; where no other is left, it is the best of those that miss it.
        """
        every, until = None if batch >= COMPARED else 1, Limits(epochs=self.epochs[batch])
        found = rates.ranked(self.search(batch, store, mean), store, "target")
        cases = [(adam(self.problem, batch, one.rate, until, every=every, mean=mean), one) for one in found]
        return next(((case, one) for case, one in cases if one.reached and not misses(case, store)), cases[0] if cases else None)


RACES = (
    Race("mnist-10k", Limits(iterations=60), {1000: 8, 5000: 15, 10000: 30}, larger=20_000),
    Race("cifar10-10k", Limits(iterations=50), {1000: 10, 5000: 25, 10000: 40}, larger=16_667),
)


def searches(store: Store, races: tuple[Race, ...] = RACES) -> list[Case]:
    """The first two stages: all rates of the last iterate, then those of the mean; one seed."""
    return [case for race in races for batch, mean in race.families for case in race.search(batch, store, mean).cases]


def finals(store: Store, races: tuple[Race, ...] = RACES) -> list[Case]:
    """The later stages: the best rates and ours, all seeds."""
    best = [found[0] for race in races for batch, mean in race.families if (found := race.final(batch, store, mean)) is not None]
    return best + [case for race in races for case in (*race.judged, *race.beside)]


def misses(case: Case, store: Store) -> bool:
    """Whether a run is there that does not come to the target."""
    there = (curve.head(case.until) for curve in store.finished(case))
    return any(not curve.reached(case.problem.target) for curve in there)


def row(case: Case, store: Store, found: Found | None = None, label: str = "") -> Row:
    """What a case takes to its target."""
    curves = store.finished(case)
    reached = [curve.head(case.until).reached(case.problem.target) for curve in curves]
    costs = {name: [at.get(name, math.nan) for at in reached] for name in ("reductions", "passes", "values", "seconds")}
    found_row: Row = {
        "problem": case.problem.title, "target": case.problem.target, "method": label or f"{case.method}, N = {case.subdomains}",
        "options": " ".join(case.words), "runs": len(curves), "missed": sum(not at for at in reached),
        **{name: mean(values) for name, values in costs.items()},
        **{f"{name}_shown": spread(values, ".1f") for name, values in costs.items()},
        "tuning": found.passes if found else 0.0, "searched": found.runs if found else 0, "ranks": ranks(curves),
    }  # fmt: skip
    return marked(found_row | {"seconds": timed(curves, found_row["seconds"])}, "method", curves)


def rows(race: Race, store: Store, seeds: int, whole: bool = False) -> list[Row]:
    """Adam's lines, then ours with their quotients and whether they are small enough; what is beside them is not judged.

    ``whole``: lines of ours that are judged are there without runs, too, since a bar that has not been tried is not met.
    """
    theirs: dict[tuple[int, bool], Row] = {}
    for batch, mean_read in race.families:
        best = race.final(batch, store, mean_read)
        if best is not None:
            case, found = best
            theirs[batch, mean_read] = row(case, store, found, f"Adam {batch:,}{', mean' if mean_read else ''}, rate {found.rate:g}")
    lines = list(theirs.values())
    complete = len(theirs) == len(race.families)
    complete &= all(one["searched"] == len(race.search(batch, store, mean_read).rates) for (batch, mean_read), one in theirs.items())
    complete &= all(one["runs"] >= seeds and not one["missed"] and not one["mixed"] for one in lines)
    least = _least(one["reductions"] for one in lines)
    base = _least(one["passes"] for (batch, _), one in theirs.items() if batch == COMPARED)
    for case in (*race.judged, *race.beside):
        mine, judged = row(case, store), case in race.judged
        mine |= {"reductions_ratio": mine["reductions"] / least, "passes_ratio": mine["passes"] / base}
        if judged:
            known = complete and mine["runs"] >= seeds and not mine["mixed"]
            mine["met"] = (mine["reductions_ratio"] <= REDUCTIONS and mine["passes_ratio"] <= 1) if known else None
        lines += [mine] if mine["runs"] or (whole and judged) else []
    return lines


def _least(values: Iterable[float]) -> float:
    return min(filter(math.isfinite, values), default=math.nan)


def tables(store: Store, seeds: int, races: tuple[Race, ...] = RACES) -> list[Table]:
    """The race to the targets."""
    begun = any(rows(race, store, seeds) for race in races)
    lines = [line for race in races for line in rows(race, store, seeds, whole=begun)]
    curves = [curve for case in [*searches(store, races), *finals(store, races)] for curve in store.curves(case)]
    return [Table("adam", "To the target", RULE, COLUMNS, lines, curves)] if lines else []


COLUMNS = {
    "problem": ("problem", ""), "target": ("target %", ".0f"), "method": ("method", ""), "reductions_shown": ("reductions", ""),
    "passes_shown": ("gradient evaluations", ""), "values": ("losses alone", ".1f"), "ranks": ("ranks", ""), "seconds": ("seconds", ".0f"),
    "tuning": ("tuning, evaluations", ".0f"),
    "reductions_ratio": ("reductions / best Adam's (bar 0.33)", ".2f"),
    "passes_ratio": (f"evaluations / Adam {COMPARED:,}'s (bar 1)", ".2f"), "met": ("met", ""), "runs": ("seeds", "d"),
}  # fmt: skip
