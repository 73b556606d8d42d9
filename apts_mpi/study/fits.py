"""The share p of the work that runs in parallel, from measured speed-ups, with x = P / P0:

    strong   Amdahl      S = 1 / ((1 - p) + p / x)
    weak     Gustafson   S = x - (1 - p) (x - 1)           the scaled speed-up
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from apts_mpi.study.statistics import MISSING, Estimate, Series, estimate

Law = Literal["Amdahl", "Gustafson"]


def amdahl(p: float, x: Any) -> Any:
    """Speed-up on x times as many ranks."""
    return 1 / ((1 - p) + p / x)


def gustafson(p: float, x: Any) -> Any:
    """Scaled speed-up on x times as many ranks."""
    return x - (1 - p) * (x - 1)


LAWS: dict[Law, Callable[[float, Any], Any]] = {"Amdahl": amdahl, "Gustafson": gustafson}


@dataclass(frozen=True)
class Fit:
    """A law with its p: the median over repetitions of the p that fits the speed-ups of each best."""

    law: Law
    p: Estimate
    base: int  # P0
    ranks: tuple[int, ...]

    @property
    def interpolated(self) -> bool:
        """Two rank counts fix p and leave nothing to be tested."""
        return len(self.ranks) == 2

    @property
    def kind(self) -> str:
        """What it may be called."""
        return "interpolation between 2 rank counts" if self.interpolated else f"fit over {len(self.ranks)} rank counts"

    def speedup(self, ranks: Any) -> Any:
        """S at a number of ranks."""
        return LAWS[self.law](self.p.median, np.asarray(ranks) / self.base)


def solve(law: Law, sizes: Sequence[float], speedups: Sequence[float]) -> float:
    """p by least squares from S at x > 1; p above 1 is faster than the ideal, below 0 slower than P0."""
    try:
        from scipy.optimize import least_squares
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(MISSING) from error
    x, measured = np.asarray(sizes, np.float64), np.asarray(speedups, np.float64)
    highest = x.max() / (x.max() - 1) - 1e-9  # where Amdahl's S is infinite
    bounds = (-np.inf, highest if law == "Amdahl" else np.inf)
    found = least_squares(lambda p: LAWS[law](p[0], x) - measured, [0.5], bounds=bounds, xtol=1e-12, ftol=1e-12, gtol=1e-12)
    return float(found.x[0])


def fit(series: Series, name: str) -> Fit | None:
    """The law of the scaling, fitted to seconds ``name``; None below two rank counts."""
    speedups = series.speedups(name)
    base = series.base
    ranks = tuple(P for P, found in speedups.items() if found)
    if base is None or len(ranks) < 2:
        return None
    law: Law = "Amdahl" if series.scaling == "strong" else "Gustafson"
    whole = set.intersection(*(set(speedups[P]) for P in ranks))
    others = [P for P in ranks if P != base.ranks]
    p = [solve(law, [P / base.ranks for P in others], [speedups[P][key] for P in others]) for key in sorted(whole)]
    return Fit(law, estimate(p), base.ranks, ranks) if p else None
