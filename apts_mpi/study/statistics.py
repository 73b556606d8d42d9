"""Medians with their intervals, speed-up and efficiency over repetitions.

    strong   S(P) = T(P0) / T(P)    E(P) = S(P) P0 / P        weak   E(P) = T(P0) / T(P)    S(P) = E(P) P / P0

P0 is the smallest rank count. Runs of one seed and repetition were made close to each other, so ratios are taken run by run, and
only then the median. Seconds of oversubscribed runs say how ranks share cores: they take no part.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from apts_mpi.study.definition import SCALINGS, Scaling
from apts_mpi.study.points import Point, Points

MISSING = "this needs scipy; install it with: pip install 'apts_mpi[study]'"
DRAWS = 4000  # of the bootstrap
ENOUGH = 6  # values; with fewer the 95 % interval is the range at best: the range of n holds the median with 1 - 2^(1 - n)
WIDE = 0.20  # of the median; a case whose interval is wider is noisy
WALL_CLOCK = ("iteration_seconds", "seconds_per_pass", "target_seconds", "run_seconds")
_NEVER = 1e140  # stands for infinity where infinity less infinity would be taken; its square is finite


@dataclass(frozen=True)
class Estimate:
    """A median with its 95 % interval; nan where it does not exist, inf where the target was not reached."""

    median: float = math.nan
    low: float = math.nan
    high: float = math.nan
    count: int = 0  # values

    @property
    def known(self) -> bool:
        return math.isfinite(self.median)


def estimate(values: Iterable[float]) -> Estimate:
    """Median and 95 % percentile bootstrap interval (fixed seed) of the values that are not nan; inf means not reached."""
    kept = np.array([min(value, _NEVER) for value in values if not math.isnan(value)], np.float64)
    if len(kept) < 2:
        return Estimate(_back(float(kept[0])), count=1) if len(kept) else Estimate()
    low, high = _interval(kept)
    return Estimate(_back(float(np.median(kept))), _back(low), _back(high), len(kept))


def _back(value: float) -> float:
    return math.inf if value > 1e-10 * _NEVER else value


def _interval(values: NDArray[np.float64]) -> tuple[float, float]:
    try:
        from scipy.stats import bootstrap
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(MISSING) from error
    if min(values) == max(values):
        return float(values[0]), float(values[0])
    found = bootstrap((values,), np.median, n_resamples=DRAWS, method="percentile", rng=np.random.default_rng(0))
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


@dataclass(frozen=True)
class Case:
    """Runs that differ in seed and repetition alone."""

    scaling: Scaling
    network: str
    method: str  # with the subdomains where a study has several
    kind: str
    ranks: int
    runs: tuple[Point, ...]
    target: bool  # whether the study has a target accuracy

    @property
    def timed(self) -> tuple[Point, ...]:
        """Runs whose seconds count."""
        return tuple(run for run in self.runs if not run.oversubscribed)

    @property
    def crowded(self) -> bool:
        """Whether all its seconds come from oversubscribed runs."""
        return not self.timed

    def values(self, name: str) -> dict[tuple[int, int], float]:
        """(seed, repetition) -> value; seconds of oversubscribed runs are left out, a target not reached is inf."""
        runs = self.timed if name in WALL_CLOCK else self.runs
        return {(run.seed, run.repetition): self._value(run, name) for run in runs}

    def _value(self, run: Point, name: str) -> float:
        value = float(getattr(run, name))
        return math.inf if math.isnan(value) and self.target and name.startswith("target_") else value

    def estimate(self, name: str) -> Estimate:
        """Median and interval of a field of the runs; nan for seconds of oversubscribed runs."""
        return estimate(self.values(name).values())

    def shown(self, name: str) -> float:
        """The median, of oversubscribed runs where there are no others: to be marked."""
        if name in WALL_CLOCK and self.crowded:
            return estimate(self._value(run, name) for run in self.runs).median
        return self.estimate(name).median

    @property
    def noisy(self) -> bool:
        """Whether the seconds of an outer iteration differ much from run to run."""
        found = self.estimate("iteration_seconds")
        return found.high - found.low > WIDE * found.median

    @property
    def reached(self) -> int:
        """Runs that saw the target accuracy."""
        return sum(not math.isnan(run.target_iterations) for run in self.runs)


@dataclass(frozen=True)
class Series:
    """One method on one network in one scaling, by rank count."""

    scaling: Scaling
    network: str
    method: str
    kind: str
    cases: tuple[Case, ...]  # ascending ranks

    @property
    def base(self) -> Case | None:
        """The smallest rank count whose seconds count."""
        return next((case for case in self.cases if not case.crowded), None)

    def speedups(self, name: str) -> dict[int, dict[tuple[int, int], float]]:
        """Ranks -> (seed, repetition) -> S(P); in weak scaling the scaled speed-up."""
        base = self.base
        if base is None:
            return {}
        first = base.values(name)
        return {case.ranks: self._ratios(first, case, case.ranks / base.ranks, name) for case in self.cases if not case.crowded}

    def _ratios(self, first: dict[tuple[int, int], float], case: Case, size: float, name: str) -> dict[tuple[int, int], float]:
        own, factor = case.values(name), size if self.scaling == "weak" else 1.0
        found = {key: factor * first[key] / own[key] for key in own if key in first and own[key] > 0}
        return {key: value for key, value in found.items() if 0 < value < math.inf}  # a target that was not reached has no ratio

    def speedup(self, name: str) -> dict[int, Estimate]:
        """Ranks -> S(P), the median over repetitions."""
        return {ranks: estimate(found.values()) for ranks, found in self.speedups(name).items() if found}

    def efficiency(self, name: str) -> dict[int, Estimate]:
        """Ranks -> E(P) = S(P) P0 / P, the median over repetitions."""
        base = self.base
        by_ranks = self.speedups(name).items() if base else ()
        return {ranks: estimate(v * base.ranks / ranks for v in found.values()) for ranks, found in by_ranks if base and found}


def all_series(points: Points) -> list[Series]:
    """Every scaling, network and method in turn; ValueError without points."""
    if not points.points:
        raise ValueError(f"study {points.name}: there is no finished run, so nothing to report; apts-mpi scale run makes them")
    keys = [(s, n, m) for s in SCALINGS for n in networks(points) for m in points.methods if points.of(scaling=s, network=n, method=m)]
    return [series for key in keys for series in _variants(points, *key)]


def distinct_cases(series: Sequence[Series]) -> list[Case]:
    """All cases in turn; one that both scalings share stands there once, with the first."""
    found: dict[tuple[str, ...], Case] = {}
    for case in (case for one in series for case in one.cases):
        found.setdefault(tuple(run.run for run in case.runs), case)
    return list(found.values())


def networks(points: Points) -> list[str]:
    """Names of the networks, the real one (empty) first."""
    return sorted({point.network for point in points.points})


def _variants(points: Points, scaling: Scaling, network: str, method: str) -> list[Series]:
    """One series for each number of subdomains per rank that the study asked for."""
    runs = points.of(scaling=scaling, network=network, method=method)
    sizes = sorted({run.per_rank for run in runs})
    names = {size: f"{method}, {size} per rank" if len(sizes) > 1 else method for size in sizes}
    target = math.isfinite(points.target_accuracy)
    return [_series(scaling, network, names[size], [run for run in runs if run.per_rank == size], target) for size in sizes]


def _series(scaling: Scaling, network: str, method: str, runs: Sequence[Point], target: bool) -> Series:
    kind = runs[0].kind
    by_ranks = {ranks: tuple(run for run in runs if run.ranks == ranks) for ranks in sorted({run.ranks for run in runs})}
    cases = tuple(Case(scaling, network, method, kind, ranks, own, target) for ranks, own in by_ranks.items())
    return Series(scaling, network, method, kind, cases)
