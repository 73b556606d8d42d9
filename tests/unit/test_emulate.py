"""Delays on a clock that moves only when somebody waits: exact, and hidden behind what is computed meanwhile."""

from __future__ import annotations

from time import monotonic_ns

import pytest
import torch

from apts_mpi.network import Network
from apts_mpi.parallel.emulate import SLEEP_ABOVE, EmulatedCommunicator, wait_until
from apts_mpi.parallel.message import LANE
from apts_mpi.parallel.serial import SerialCommunicator

CPU = torch.device("cpu")
TAIL = LANE + 2  # cells of one scalar and the flags
MS = 1_000_000


class Clock:
    """ns; every look takes 100 ns, so that a spinning loop ends."""

    def __init__(self) -> None:
        self.now = 0
        self.slept = 0.0

    def __call__(self) -> int:
        self.now += 100
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.slept += seconds
        self.now += round(seconds * 1e9)


def emulated(latency: float, bandwidth: float, ranks: int) -> tuple[EmulatedCommunicator, Clock]:
    clock = Clock()
    return EmulatedCommunicator(SerialCommunicator(), Network(latency, bandwidth, ranks), clock, clock.sleep), clock


def near(clock: Clock, milliseconds: float) -> bool:
    return 0 <= clock.now - milliseconds * MS < 2_000


def test_a_blocking_sum_takes_the_time_of_the_model() -> None:
    comm, clock = emulated(1e-3, 4e6, 2)  # 1 ms and 1 ms for 1000 float32
    message = comm.plan(1000, torch.float32, CPU, ["loss"])
    message.put("loss", [2.5])
    comm.sum_(message)
    assert near(clock, 2 + TAIL * 4 / 4e3)
    assert message.get("loss") == 2.5
    before = clock.now / MS
    comm.sum_(message, vector=False)
    assert near(clock, before + 1 + TAIL * 4 / 4e3)
    assert (comm.messages, comm.bytes) == (2, 0)


def test_computing_hides_what_was_started() -> None:
    comm, clock = emulated(1e-3, 0.0, 2)
    message = comm.plan(10, torch.float32, CPU, ["loss"])
    comm.start_sum(message, 0, 5)
    comm.start_sum(message, 5, 10)
    assert clock.now < 1_000
    clock.now += 10 * MS  # computing
    comm.finish_sum(message)
    assert near(clock, 11)  # only scalars and flags are left to wait for


def test_parts_share_one_wire_but_not_their_latencies() -> None:
    comm, clock = emulated(1e-3, 4e6, 2)  # 1 ms for 1000 float32
    message = comm.plan(5000, torch.float32, CPU, [])
    for start in range(0, 5000, 1000):
        comm.start_sum(message, start, start + 1000)
    clock.now += 2 * MS  # computing: two of the five parts
    comm.finish_sum(message)
    assert near(clock, 5 + 1 + 2 * 4 / 4e3)  # bytes in turn, one latency, the flags


def test_a_part_that_starts_late_leaves_late() -> None:
    comm, clock = emulated(1e-3, 4e6, 2)
    message = comm.plan(2000, torch.float32, CPU, [])
    comm.start_sum(message, 1000, 2000)
    clock.now += 10 * MS
    comm.start_sum(message, 0, 1000)
    comm.finish_sum(message)
    assert near(clock, 10 + 1 + 1 + 2 * 4 / 4e3)


def test_one_rank_may_pretend_to_be_many() -> None:
    comm, clock = emulated(1e-3, 0.0, 1024)
    comm.sum_(comm.plan(10, torch.float32, CPU, []))
    assert near(clock, 10)


def test_long_waits_sleep_and_none_is_too_short() -> None:
    clock = Clock()
    wait_until(50 * MS, clock, clock.sleep)
    assert near(clock, 50)
    assert clock.slept == pytest.approx(0.05 - SLEEP_ABOVE / 2 * 1e-9, abs=1e-6)
    clock = Clock()
    wait_until(SLEEP_ABOVE // 2, clock, clock.sleep)
    assert clock.slept == 0
    start = monotonic_ns()
    wait_until(start + 3 * MS)
    assert monotonic_ns() - start >= 3 * MS
    wait_until(0)
