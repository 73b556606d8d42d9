"""Where a run is read: at the last outer iteration within limits that were fixed before it began, never at its best one."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FIRST = 2  # outer iterations of a run's first start, where only its cost is limited
GROWTH, SHARE = 4, 0.8  # a run is at most so many times as long after its next start, and takes such a share of what is left


@dataclass(frozen=True)
class Used:
    """What a run has used up after each of its outer iterations; all of one length, none ever falls."""

    epochs: NDArray[np.float64]
    passes: NDArray[np.float64]  # gradient evaluations, in passes over the training set
    reductions: NDArray[np.float64]  # of n-vectors

    @property
    def iterations(self) -> NDArray[np.float64]:
        """1, 2, ..."""
        return np.arange(1.0, len(self.epochs) + 1)


@dataclass(frozen=True)
class Limits:
    """A budget; inf: no limit of this kind."""

    iterations: float = math.inf
    epochs: float = math.inf
    passes: float = math.inf
    reductions: float = math.inf

    def __post_init__(self) -> None:
        if not any(map(math.isfinite, vars(self).values())):
            raise ValueError("a run needs a limit of iterations, epochs, passes or reductions")

    def within(self, used: Used) -> int:
        """How many outer iterations keep all limits; the run is read at the last of them."""
        kept = np.ones(len(used.epochs), bool)
        for name, limit in vars(self).items():
            kept &= getattr(used, name) <= limit + 1e-9
        return int(kept.sum())

    def spent(self, used: Used) -> bool:
        """Whether the run has come to a limit: one iteration is beyond, or nothing is left."""
        done = len(used.epochs)
        return self.within(used) < done or (done > 0 and any(getattr(used, name)[-1] >= limit - 1e-9 for name, limit in vars(self).items()))

    def next_stop(self, used: Used | None) -> tuple[int, int]:
        """stop.epochs and stop.iterations of the next start; 0: not set. ``used``: what is on record, if anything.

        Iterations and epochs are asked for as they are. Costs of iterations are not known before, so the run is prolonged in steps that
        would keep the budget at the price of the dearest iteration so far, the last of them one by one: it ends one iteration beyond its
        budget at most, so that what is known of its end alone is that of the budget.
        """
        epochs = int(self.epochs) if math.isfinite(self.epochs) else 0
        priced = {name: getattr(self, name) for name in ("passes", "reductions") if math.isfinite(getattr(self, name))}
        if not priced:
            return epochs, int(self.iterations) if math.isfinite(self.iterations) else 0
        if used is None or not len(used.epochs):
            return epochs, int(min(self.iterations, FIRST))
        done = len(used.epochs)
        dearest = {name: float(np.diff(getattr(used, name), prepend=0.0).max()) for name in priced}
        left = [(priced[name] - getattr(used, name)[-1]) / price for name, price in dearest.items() if price > 0]
        more = min([(GROWTH - 1) * done, *(math.floor(SHARE * count) for count in left)])
        return epochs, int(min(self.iterations, done + max(1, more)))


def first_at(accuracy: NDArray[np.float64], target: float) -> int | None:
    """The number of outer iterations after which the test accuracy was at or above the target for the first time."""
    at = np.flatnonzero(accuracy >= target)  # nan, where it was not evaluated, compares false
    return int(at[0]) + 1 if len(at) else None
