"""Benchmarks of the paper: where a run is read, and when it has come far enough, with made-up records."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from paper.limits import Limits, Used, first_at


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


def test_the_options_that_end_a_run_there() -> None:
    assert Limits(passes=24.2, reductions=108).stops() == [
        "--stop.iterations", "0", "--stop.epochs", "0", "--stop.passes", "24.2", "--stop.reductions", "108",
    ]  # fmt: skip
    assert Limits(iterations=20, epochs=25).stops()[:4] == ["--stop.iterations", "20", "--stop.epochs", "25"]


def test_a_run_without_a_limit_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a limit"):
        Limits()


def test_the_first_iteration_at_the_target() -> None:
    accuracy = np.array([math.nan, 97.0, math.nan, 98.0, 97.5, 98.2])
    assert first_at(accuracy, 98.0) == 4 and first_at(accuracy, 97.0) == 2 and first_at(accuracy, 98.3) is None
