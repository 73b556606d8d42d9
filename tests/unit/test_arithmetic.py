"""Rates from counts and times."""

from __future__ import annotations

import math

from apts_mpi.arithmetic import Arithmetic
from apts_mpi.timing import RegionTime


def times(**means: float) -> list[RegionTime]:
    return [RegionTime("run", name.replace("_", " "), 1, mean, mean, mean, 1.0, 0.0, 0, 0) for name, mean in means.items()]


def test_rates_of_a_rank() -> None:
    known = Arithmetic(gradient=6e6, value=2e6, peak=2e9)
    total = known.total(1000, 500)
    assert total == 7e9
    text = known.text(total, total, ranks=2, seconds=10.0, times=times(evaluate=2.0, local_solve=1.5, model=5.0))
    assert text == "1 GFLOP/s per rank while evaluating (50 % of the measured 2), 0.35 over the run"
    assert "measured" not in Arithmetic(6e6, 2e6).text(total, total, 2, 10.0, times(evaluate=1.0))


def test_a_run_that_was_gone_on_with_is_rated_by_what_its_times_are_of() -> None:
    text = Arithmetic(6e6, 2e6).text(7e9, 1e9, 1, 10.0, times(evaluate=0.5))
    assert text == "2 GFLOP/s per rank while evaluating, 0.7 over the run"


def test_nothing_is_said_about_what_is_not_known() -> None:
    assert Arithmetic().text(math.nan, math.nan, 1, 1.0, times(evaluate=1.0)) == ""
    assert Arithmetic(1.0, 1.0).text(5.0, 5.0, 1, 0.0, times(evaluate=1.0)) == ""
    assert Arithmetic(1.0, 1.0).text(5.0, 5.0, 1, 1.0, times(model=1.0)) == ""
    assert Arithmetic(0.0, 0.0).text(0.0, 0.0, 1, 1.0, times(evaluate=1.0)) == ""
