"""Region timers on a clock that the test moves by hand, and their cost on the real one."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from time import thread_time_ns

import pytest

from apts_mpi import timing
from apts_mpi.timing import RUN, Timers, render, split, table


class Clock:
    """A clock in ns that stands still unless told."""

    def __init__(self) -> None:
        self.now = 1_000

    def __call__(self) -> int:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += round(seconds * 1e9)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_nested_time_counts_in_the_inner_region_only(clock: Clock) -> None:
    timers = Timers(clock=clock)
    timers.phase("run")
    clock.wait(1)
    with timers("local solve"):
        clock.wait(2)
        for _ in range(3):
            with timers("evaluate"):
                clock.wait(4)
                with timers("evaluate"):  # the same region inside itself
                    clock.wait(0.5)
        clock.wait(8)
    clock.wait(16)
    run = split(timers.row())["run"]
    assert run["local solve"]["seconds"] == pytest.approx(10)
    assert run["evaluate"]["seconds"] == pytest.approx(13.5)
    assert run["other"]["seconds"] == pytest.approx(17)
    assert (run["local solve"]["calls"], run["evaluate"]["calls"], run["other"]["calls"]) == (1, 6, 0)
    assert timers.elapsed() == pytest.approx(40.5)


def test_phases_are_apart_and_a_phase_may_come_back(clock: Clock) -> None:
    timers = Timers(clock=clock)
    for phase, seconds in (("set-up", 1.0), ("warm-up", 2.0), ("run", 4.0), ("set-up", 8.0)):
        timers.phase(phase)
        with timers("io"):
            clock.wait(seconds)
    parts = split(timers.row())
    assert [parts[phase]["io"]["seconds"] for phase in timing.PHASES] == pytest.approx([9, 2, 4])


def test_lap_gives_the_time_since_the_last_lap_even_inside_a_region(clock: Clock) -> None:
    timers = Timers(clock=clock)
    clock.wait(100)
    timers.phase("run")
    clock.wait(1)
    with timers("reduce"):
        clock.wait(2)
        first = timers.lap()
        clock.wait(3)
    assert (first["other"], first["reduce"], first["test"]) == pytest.approx((1, 2, 0))
    second = timers.lap()
    assert (second["other"], second["reduce"]) == pytest.approx((0, 3))
    assert list(first) == list(timing.REGIONS)


def test_laps_are_kept_in_float32_by_region(clock: Clock) -> None:
    timers = Timers(clock=clock)
    timers.phase("run")
    for seconds in (1.0, 2.0, 0.1):
        with timers("reduce"):
            clock.wait(seconds)
            with timers("wait"):  # for slower ranks: not counted as sending
                clock.wait(4)
        timers.lap()
    assert timers.laps("reduce").typecode == "f"
    assert list(timers.laps("reduce")) == pytest.approx([1, 2, 0.1])
    assert list(timers.laps("wait")) == pytest.approx([4] * 3)
    assert list(timers.laps("io")) == [0] * 3


def test_an_exception_leaves_the_region(clock: Clock) -> None:
    timers = Timers(clock=clock)
    with pytest.raises(KeyError), timers("test"), timers("io"):
        clock.wait(1)
        raise KeyError
    clock.wait(2)
    part = split(timers.row())["set-up"]
    assert (part["io"]["seconds"], part["test"]["seconds"], part["other"]["seconds"]) == pytest.approx((1, 0, 2))


def test_the_device_is_waited_for_at_both_borders_before_the_clock_is_read(clock: Clock) -> None:
    timers = Timers(synchronise=lambda: clock.wait(1), clock=clock)  # the device is always 1 s behind
    with timers("evaluate"):
        clock.wait(10)
    part = split(timers.row())["set-up"]
    assert (part["other"]["seconds"], part["evaluate"]["seconds"]) == pytest.approx((1, 11))


def test_the_device_is_not_waited_for_at_borders_inside_a_region(clock: Clock) -> None:
    timers = Timers(synchronise=lambda: clock.wait(1), clock=clock)
    with timers("local solve"):
        for _ in range(5):
            with timers("model"):
                clock.wait(10)
    part = split(timers.row())["set-up"]
    assert [part[name]["seconds"] for name in ("other", "local solve", "model")] == pytest.approx([1, 1, 50])


def test_unknown_names_are_refused_with_the_known_ones(clock: Clock) -> None:
    timers = Timers(clock=clock)
    with pytest.raises(ValueError, match="unknown timer region 'redcue'.*reduce"):
        timers("redcue")
    with pytest.raises(ValueError, match="unknown timer phase 'runn'.*warm-up"):
        timers.phase("runn")
    with timers("io"), pytest.raises(RuntimeError, match="inside region 'io'"):
        timers.phase("run")
    with pytest.raises(ValueError, match="120 values, got 3"):
        split([1.0, 2.0, 3.0])


def test_table_over_ranks_adds_to_hundred_per_cent() -> None:
    rows = []
    for rank in range(4):
        clock = Clock()
        timers = Timers(clock=clock)
        timers.phase("run")
        with timers("evaluate"):
            clock.wait(1 + rank)
        with timers("reduce"):
            clock.wait(4 - rank)
        timers.count("reduce", 3, 3_000_000)
        rows.append(timers.row())
    lines = {line.region: line for line in table(rows)}
    assert set(lines) == {"evaluate", "reduce"}  # what never ran is left out
    line = lines["evaluate"]
    assert (line.low, line.mean, line.high, line.imbalance, line.share) == pytest.approx((1, 2.5, 4, 1.6, 50))
    assert sum(line.share for line in lines.values()) == pytest.approx(100)
    assert (lines["reduce"].messages, lines["reduce"].bytes, lines["reduce"].calls) == (3, 3_000_000, 1)
    text = render(list(lines.values()))
    assert all(len(row) <= 100 for row in text)
    assert "3 MB" in text[2] and "50.0 %" in text[2] and "total" in text[-1]
    spare = ("min s", "max s", "messages", "bytes")
    for width, missing in ((95, 0), (94, 1), (80, 2), (70, 3), (60, 4)):
        narrow = render(list(lines.values()), width)
        assert all(len(row) <= width for row in narrow)
        assert [name in narrow[0] for name in spare] == [False] * missing + [True] * (4 - missing)
        assert narrow[-1].split() == ["run", "total", "5.000"] and len({row.index("2.500") for row in narrow[1:3]}) == 1


def test_sizes_for_people() -> None:
    sizes = {0: "0 B", 999: "999 B", 1000: "1 kB", 2_143_272: "2.14 MB", 999_600_000: "1 GB", 5e13: "50 TB"}
    assert [timing.size_text(size) for size in sizes] == list(sizes.values())


@pytest.fixture
def untraced() -> Iterator[None]:
    """No coverage measurement meanwhile: it costs more than a region."""
    tracer = sys.gettrace()
    sys.settrace(None)
    yield
    sys.settrace(tracer)


def test_a_region_costs_at_most_two_microseconds(untraced: None) -> None:
    timers = Timers()
    timers.phase(RUN)

    def burst(count: int = 5_000) -> float:
        start = thread_time_ns()  # others use this machine too
        for _ in range(count):
            with timers("model"):
                pass
        return (thread_time_ns() - start) / count

    assert min(burst() for _ in range(10)) < 2_000
    assert timers("model") is timers("model")


def test_a_phase_waits_for_the_device(clock: Clock) -> None:
    timers = Timers(synchronise=lambda: clock.wait(1), clock=clock)
    timers.phase("run")
    parts = split(timers.row())
    assert (parts["set-up"]["other"]["seconds"], parts["run"]["other"]["seconds"]) == pytest.approx((1, 0))
