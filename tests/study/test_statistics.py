"""Medians, intervals, speed-ups and the laws fitted to them: known answers and slow twins."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from points_cases import WOBBLE, point, study

from apts_mpi.study import fits
from apts_mpi.study.points import Points
from apts_mpi.study.statistics import Series, all_series, estimate

pytest.importorskip("scipy")


def make(*runs: object, target: float = 97.0) -> Points:
    return Points("x", "", 1, 5, target, len(runs), (), tuple(runs), "", {})  # type: ignore[arg-type]


def series(points: Points, scaling: str = "strong", method: str = "APTS", network: str = "") -> Series:
    [found] = [s for s in all_series(points) if (s.scaling, s.method, s.network) == (scaling, method, network)]
    return found


def test_five_values_have_their_range_as_interval() -> None:
    found = estimate([5.0, 1.0, 3.0, 2.0, 4.0])
    assert (found.median, found.low, found.high, found.count) == (3.0, 1.0, 5.0, 5)


def test_the_interval_agrees_with_all_resamples() -> None:
    """For 6 values every one of the 6^6 resamples can be written down."""
    values = [1.0, 2.0, 4.0, 7.0, 11.0, 16.0]
    medians = [float(np.median(draw)) for draw in product(values, repeat=6)]
    low, high = np.percentile(medians, [2.5, 97.5])
    found = estimate(values)
    assert (found.median, found.low, found.high) == (5.5, low, high)  # four deviations of 4000 draws lie between them and their neighbours


def test_few_values() -> None:
    assert estimate([2.0]).median == 2.0 and math.isnan(estimate([2.0]).low) and estimate([2.0]).count == 1
    assert math.isnan(estimate([math.nan]).median) and estimate([]).count == 0
    assert (estimate([2.0, 2.0]).low, estimate([2.0, 2.0]).high) == (2.0, 2.0)


def test_targets_that_were_not_reached_count_as_late() -> None:
    found = estimate([1.0, 2.0, 3.0, math.inf, math.inf])
    assert (found.median, found.low, found.high) == (3.0, 1.0, math.inf)
    assert estimate([1.0, math.inf, math.inf]).median == math.inf


def test_speedup_is_taken_run_by_run() -> None:
    """Ratios of pairs are 2, 4, 3: the median is 3, where the ratio of the medians is 10 / 5 = 2."""
    times = {1: (10.0, 20.0, 6.0), 2: (5.0, 5.0, 2.0)}
    runs = [point(ranks=P, repetition=k, iteration_seconds=t) for P, row in times.items() for k, t in enumerate(row)]
    found = series(make(*reversed(runs)))
    assert found.speedup("iteration_seconds")[2].median == 3.0
    assert found.efficiency("iteration_seconds")[2].median == 1.5
    assert found.speedup("iteration_seconds")[1].median == 1.0


def test_seeds_are_told_apart() -> None:
    runs = [point(ranks=P, seed=seed, iteration_seconds=t) for P, seed, t in ((1, 0, 8.0), (1, 1, 2.0), (2, 0, 4.0), (2, 1, 1.0))]
    found = series(make(*runs)).speedup("iteration_seconds")[2]
    assert (found.median, found.low, found.high) == (2.0, 2.0, 2.0)


def test_weak_efficiency_and_scaled_speedup_from_two_ranks() -> None:
    runs = [point(scaling="weak", ranks=P, subdomains=P, iteration_seconds=t) for P, t in ((2, 3.0), (8, 4.0))]
    found = series(make(*runs), "weak")
    assert found.base is not None and found.base.ranks == 2
    assert found.efficiency("iteration_seconds")[8].median == 0.75
    assert found.speedup("iteration_seconds")[8].median == 3.0


@pytest.mark.parametrize("name", ["iteration_seconds", "seconds_per_pass", "target_seconds"])
def test_every_kind_of_seconds(name: str) -> None:
    found = series(study()).speedup(name)[2]
    assert found.median == pytest.approx(1 / 0.55) and found.count == len(WOBBLE)


def test_oversubscribed_seconds_take_no_part() -> None:
    points = study()
    found = series(points)
    assert set(found.speedup("iteration_seconds")) == {1, 2}
    crowded = found.cases[-1]
    assert crowded.crowded and not crowded.estimate("iteration_seconds").known and crowded.shown("iteration_seconds") > 0
    assert crowded.estimate("target_passes").known  # counting does not depend on the clock
    runs = [replace(p, oversubscribed=p.repetition == 0, iteration_seconds=99.0 if p.repetition == 0 else 1.0) for p in points.points]
    assert series(replace(points, points=tuple(runs))).cases[0].estimate("iteration_seconds").high == 1.0


def test_a_target_without_a_base_has_no_ratio() -> None:
    runs = [point(ranks=1, target_seconds=math.nan), point(ranks=2)]
    assert series(make(*runs)).speedup("target_seconds") == {}
    assert series(make(*runs)).cases[0].estimate("target_seconds").median == math.inf
    assert math.isnan(series(make(*runs, target=math.inf)).cases[0].estimate("target_seconds").median)


def test_numbers_of_subdomains_make_their_own_series() -> None:
    runs = [point(ranks=P, subdomains=2 * k, per_rank=k) for P in (1, 2) for k in (1, 2)]
    assert [(s.method, len(s.cases)) for s in all_series(make(*runs))] == [("APTS, 1 per rank", 2), ("APTS, 2 per rank", 2)]
    weak = [point(scaling="weak", ranks=P, subdomains=P * k, per_rank=k) for P in (1, 2) for k in (1, 3)]
    assert [s.method for s in all_series(make(*weak))] == ["APTS, 1 per rank", "APTS, 3 per rank"]


def test_a_method_whose_subdomains_are_its_ranks_is_one_series() -> None:
    runs = [point("SGD", ranks=P, subdomains=P, iteration_seconds=2.0 / P) for P in (1, 2)]
    (found,) = all_series(make(*runs))
    assert (found.method, len(found.cases), found.speedup("iteration_seconds")[2].median) == ("SGD", 2, 2.0)


def test_no_points_are_refused() -> None:
    with pytest.raises(ValueError, match="no finished run"):
        all_series(make())


def test_amdahl_and_gustafson_are_recovered() -> None:
    sizes = [2.0, 4.0, 16.0]
    assert fits.solve("Amdahl", sizes, [1 / (0.07 + 0.93 / x) for x in sizes]) == pytest.approx(0.93)
    assert fits.solve("Gustafson", sizes, [x - 0.2 * (x - 1) for x in sizes]) == pytest.approx(0.8)
    assert fits.solve("Amdahl", [2.0], [2.2]) == pytest.approx(12 / 11)  # faster than the ideal is not cut off


def test_least_squares_agrees_with_a_fine_grid() -> None:
    sizes, measured = np.array([2.0, 4.0, 8.0]), np.array([1.7, 3.3, 4.1])
    grid = np.linspace(0, 1.1, 110_001)
    residual = [(fits.amdahl(p, sizes) - measured) for p in grid]
    best = grid[int(np.argmin([r @ r for r in residual]))]
    assert fits.solve("Amdahl", list(sizes), list(measured)) == pytest.approx(best, abs=2e-5)


def test_fits_of_a_study() -> None:
    points = replace(study(), points=tuple(replace(p, oversubscribed=False) for p in study().points))
    found = fits.fit(series(points), "iteration_seconds")
    assert found is not None and found.law == "Amdahl" and not found.interpolated and found.kind == "fit over 3 rank counts"
    assert found.p.median == pytest.approx(0.9) and found.speedup(4) == pytest.approx(1 / (0.1 + 0.9 / 4))
    weak = fits.fit(series(study(), "weak"), "iteration_seconds")
    assert weak is not None and weak.law == "Gustafson" and weak.kind == "interpolation between 2 rank counts"
    assert weak.p.median == pytest.approx(2 / 1.03 - 1)
    assert fits.fit(series(make(point())), "iteration_seconds") is None
