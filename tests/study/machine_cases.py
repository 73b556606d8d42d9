"""A machine whose constants are round numbers, so that prices can be worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from apts_mpi.study.machine import Compute, Machine, Parts, Sums

N = 1000
VECTOR = {
    "copy": 1e-6, "zero": 2e-6, "add": 3e-6, "sub": 4e-6, "mul": 5e-6, "dot": 6e-6, "square": 7e-6, "lerp": 8e-6, "length": 9e-6,
    "addcmul": 10e-6, "combine": 11e-6, "checksum": 12e-6, "reach": 13e-6,
}  # fmt: skip


def line(fixed: float, each: float) -> tuple[tuple[int, float], ...]:
    """fixed + each * samples."""
    return tuple((b, fixed + each * b) for b in (1, 16, 128, 1024))


ONE = Compute(
    ranks=1, n_params=N, itemsize=4, numbers=10, piece=1024, ready_bytes=2**28, gradient=line(1e-3, 1e-5), value=line(4e-4, 4e-6),
    chunk=line(9e-4, 1e-5), select=line(5e-5, 1e-6), take=line(1e-5, 5e-7), vector=VECTOR,
    optimizer={"sgd": 20e-6, "adam": 30e-6, "adamw": 31e-6}, lsr1=(1e-4, 2e-4, 3e-4, 4e-4, 5e-4, 6e-4), lsr1_begin=7e-5, message=4e-5,
    parts=Parts(2**20, (3000, 1000), tuple((b, (0.6e-3 + 6e-6 * b, 0.9e-3 + 9e-6 * b, 1.1e-3 + 1e-5 * b)) for b in (1, 16, 128, 1024))),
)  # fmt: skip
TWO = Sums(2, ours=((16, 1e-5), (1016, 2e-5), (10016, 11e-5)), bare=((16, 0.9e-5), (10016, 9e-5)), latency=1e-5, bandwidth=1e8)


def machine(**changes: Any) -> Machine:
    one = replace(ONE, **changes)
    return Machine({1: one, 2: replace(one, ranks=2)}, {2: TWO})
