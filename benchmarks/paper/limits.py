"""Where a run is read: at the last outer iteration within limits that were fixed before it began, never at its best one."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


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

    def stops(self) -> list[str]:
        """Options of train that end a run at these limits: at the first iteration that has spent one, and so one beyond at most."""
        names = {name: f"{limit:g}" if math.isfinite(limit) else "0" for name, limit in vars(self).items()}
        return [word for name, limit in names.items() for word in (f"--stop.{name}", limit)]


def first_at(accuracy: NDArray[np.float64], target: float) -> int | None:
    """The number of outer iterations after which the test accuracy was at or above the target for the first time."""
    at = np.flatnonzero(accuracy >= target)  # nan, where it was not evaluated, compares false
    return int(at[0]) + 1 if len(at) else None
