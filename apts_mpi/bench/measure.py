"""Two things timed in turn, and what may be said about their ratio.

Base and candidate run in pairs, in alternating order, so that whatever else the machine does meets both.
Of every measurement the slowest rank counts. Medians, and 95 % intervals of them by bootstrap
(Hoefler and Belli, Scientific Benchmarking of Parallel Computing Systems, SC'15).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np

from apts_mpi.contracts import Communicator

REPEATS_MIN = 15
WARM_UP = 3  # pairs that are not counted
DRAWS = 4000  # of the bootstrap

Work = Callable[[], object]


@dataclass(frozen=True)
class Plan:
    """How often to measure."""

    repeats: int = 20
    warm_up: int = WARM_UP

    def __post_init__(self) -> None:
        if self.repeats < REPEATS_MIN:
            raise ValueError(f"--repeats must be at least {REPEATS_MIN}, got {self.repeats}: fewer say nothing about the spread")


def clock(comm: Communicator, work: Work, calls: int = 1) -> float:
    """Seconds of one call on the slowest rank; every rank calls."""
    comm.barrier()
    start = perf_counter()
    for _ in range(calls):
        work()
    return max(row[0] for row in comm.gather([(perf_counter() - start) / calls]))


def interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % confidence interval of the median, by bootstrap with a fixed seed."""
    draws = np.random.default_rng(0).choice(values, (DRAWS, len(values)))
    low, high = np.percentile(np.median(draws, axis=1), [2.5, 97.5])
    return float(low), float(high)


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Median and its interval."""
    return {"median": float(np.median(values)), "interval_95": list(interval(values))}


def compared(ours: Sequence[float], base: Sequence[float]) -> dict[str, Any]:
    """Seconds of both, and the ratio pair by pair."""
    ratios = [a / b for a, b in zip(ours, base, strict=True)]
    return {"ours_s": summary(ours), "base_s": summary(base), "ratio": summary(ratios), "repeats": len(ratios)}


def in_turn(comm: Communicator, ours: Work, base: Work, plan: Plan, calls: int = 1) -> dict[str, Any]:
    """``compared`` of ``ours`` and ``base`` over all pairs of a plan; every rank calls."""
    pairs = []
    for index in range(plan.warm_up + plan.repeats):
        order = [ours, base] if index % 2 else [base, ours]
        times = {id(work): clock(comm, work, calls) for work in order}
        pairs.append((times[id(ours)], times[id(base)]))
    kept = pairs[plan.warm_up :]
    return compared([a for a, _ in kept], [b for _, b in kept])


def heading(name: str, base: str) -> str:
    """What stands above some lines: ours against ``base``."""
    return f"{name:<24} {'ours':>15} {base:>15}   median of ours / {base}, pair by pair [95 %]"


def line(name: str, result: dict[str, Any]) -> str:
    """A comparison for people."""
    low, high = result["ratio"]["interval_95"]
    ours, base = (1e6 * result[key]["median"] for key in ("ours_s", "base_s"))
    return f"{name:<24} {ours:>12.1f} us {base:>12.1f} us   ratio {result['ratio']['median']:.3f} [{low:.3f}, {high:.3f}]"
