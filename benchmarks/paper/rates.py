"""A method with a learning rate: the search for it, and what the search cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from paper.cases import Case
from paper.store import Store

# Thirteen, as many as the paper tried, evenly spaced on a logarithmic scale.
RATES = (1e-4, 1.8e-4, 3.2e-4, 5.6e-4, 1e-3, 1.8e-3, 3.2e-3, 5.6e-3, 1e-2, 1.8e-2, 3.2e-2, 5.6e-2, 0.1)


@dataclass(frozen=True)
class Search:
    """One run for each rate; ``make`` is the case of a rate."""

    make: Callable[[float], Case]
    rates: Sequence[float] = RATES

    @property
    def cases(self) -> list[Case]:
        return [self.make(rate) for rate in self.rates]


@dataclass(frozen=True)
class Found:
    """What a search has shown so far."""

    rate: float
    passes: float  # gradient evaluations of all its runs
    reductions: float
    runs: int
    reached: bool  # the target, with the first seed


def best(search: Search, store: Store, by: str) -> Found | None:
    """The first of ``ranked``; None before any run is there."""
    return next(iter(ranked(search, store, by)), None)


def ranked(search: Search, store: Store, by: str) -> list[Found]:
    """The rates, the best first, ``by`` target (fewest gradient evaluations to it; without it, accuracy), accuracy or loss.

    Accuracy and loss are those at the end of the budget, of the first seed.
    """
    scored: list[tuple[tuple[float, ...], float, bool]] = []
    passes = reductions = 0.0
    for rate in search.rates:
        case = search.make(rate)
        curve = next((curve for curve in store.finished(case) if curve.seed == 0), None)
        end = curve.cut(case.until) if curve else {}
        if not curve or not end:
            continue
        passes, reductions = passes + end["passes"], reductions + end["reductions"]
        loss = curve.loss[case.until.within(curve.used) - 1]
        accuracy = end["accuracy"] if math.isfinite(end["accuracy"]) else -math.inf
        needed = curve.head(case.until).reached(case.problem.target).get("passes", math.inf)
        low = float(loss) if math.isfinite(loss) else math.inf
        score = {"target": (needed, -accuracy), "accuracy": (-accuracy, low), "loss": (low,)}[by]
        scored.append((score, rate, math.isfinite(needed)))
    return [Found(rate, passes, reductions, len(scored), reached) for _, rate, reached in sorted(scored)]
