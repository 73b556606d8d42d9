"""Benchmarks of the paper: where a run is read, and when it has come far enough, with made-up records."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from paper.limits import FIRST, Limits, Used, first_at


def used(iterations: int, passes: float = 0.5, reductions: int = 2, batches: int = 6) -> Used:
    count = np.arange(1.0, iterations + 1)
    return Used(count / batches, passes * count, reductions * count)


@pytest.mark.parametrize(("limits", "within"), [
    (Limits(passes=24, reductions=108), 48),  # both: the passes come first
    (Limits(passes=40, reductions=108), 54),
    (Limits(passes=23.9), 47),
    (Limits(iterations=20, reductions=45), 20),
    (Limits(iterations=30, reductions=45), 22),
    (Limits(epochs=2), 12),
    (Limits(passes=0.4), 0),
    (Limits(iterations=1000), 60),
])  # fmt: skip
def test_the_last_iteration_within_all_limits(limits: Limits, within: int) -> None:
    assert limits.within(used(60)) == within


def test_a_budget_that_is_used_up_to_the_last_bit_is_spent() -> None:
    """Sums of thirds are not whole, and one iteration too few would be read."""
    thirds = Used(np.arange(1, 4) / 3, np.cumsum(np.full(3, 1 / 3)), np.cumsum(np.full(3, 2.0)))
    assert Limits(passes=1).within(thirds) == 3 and Limits(passes=1).spent(thirds)
    assert not Limits(passes=1.1).spent(thirds)
    assert Limits(epochs=1).spent(thirds) and Limits(iterations=3).spent(thirds) and not Limits(iterations=4).spent(thirds)
    assert not Limits(passes=1).spent(Used(*(np.zeros(0),) * 3))


def test_where_the_next_start_ends() -> None:
    assert Limits(iterations=20).next_stop(None) == (0, 20)
    assert Limits(epochs=25).next_stop(used(3)) == (25, 0)
    assert Limits(passes=24, reductions=108).next_stop(None) == (0, FIRST)
    assert Limits(iterations=1, passes=24).next_stop(None) == (0, 1)
    assert Limits(passes=24, reductions=108).next_stop(used(6)) == (0, 24)  # no more than four times as long
    assert Limits(passes=24, reductions=108).next_stop(used(24)) == (0, 43)  # 0.8 of the 24 that are left
    assert Limits(passes=24.2, reductions=108).next_stop(used(48)) == (0, 49)  # one too far, to know that it is
    assert Limits(passes=24).next_stop(used(24, passes=0.0)) == (0, 96)


def test_prolonging_ends_though_iterations_grow_dearer_or_cheaper() -> None:
    for growth in (0.97, 1.0, 1.1):
        cost, limits, starts = growth ** np.arange(1000), Limits(passes=24), 0
        now: Used | None = None
        while now is None or not limits.spent(now):
            _, stop = limits.next_stop(now)
            now = Used(np.arange(1.0, stop + 1), np.cumsum(cost[:stop]), np.arange(1.0, stop + 1))
            starts += 1
        assert starts <= 15 and limits.within(now) == int((np.cumsum(cost) <= 24).sum())
        assert len(now.epochs) <= limits.within(now) + 1, "its end is read, so it may not lie far beyond"


def test_long_runs_take_few_starts_and_dear_iterations_after_cheap_ones_do_not_carry_them_away() -> None:
    for cost, most in ((np.ones(5000), 12), (np.where(np.arange(5000) % 3, 1.0, 0.2), 18), (np.where(np.arange(5000) < 3, 0.5, 1.0), 12)):
        limits, starts, now = Limits(passes=3000), 0, Used(*(np.zeros(0),) * 3)
        while not limits.spent(now):
            stop = limits.next_stop(now)[1]
            now, starts = Used(np.arange(1.0, stop + 1), np.cumsum(cost[:stop]), np.arange(1.0, stop + 1)), starts + 1
        assert starts <= most and len(now.epochs) <= limits.within(now) + 1


def test_a_run_without_a_limit_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a limit"):
        Limits()


def test_the_first_iteration_at_the_target() -> None:
    accuracy = np.array([math.nan, 97.0, math.nan, 98.0, 97.5, 98.2])
    assert first_at(accuracy, 98.0) == 4 and first_at(accuracy, 97.0) == 2 and first_at(accuracy, 98.3) is None
