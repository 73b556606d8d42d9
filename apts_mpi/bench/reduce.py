"""A planned message against one MPI_Allreduce of the same bytes, and latency and bandwidth from the latter."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from apts_mpi.bench.measure import Plan, clock, in_turn
from apts_mpi.contracts import Communicator, Flag
from apts_mpi.network import Network, terms
from apts_mpi.parallel.raw import raw_sum
from apts_mpi.parallel.serial import checked

BLOCK = 2e-3  # s that one measurement should last
CALLS_MAX = 200
BYTES_MIN, STEP = 16, 4


def sizes(largest: int) -> list[int]:
    """Lengths of the buffers in bytes: 16, 64, ... up to ``largest``, which is the last."""
    if largest < BYTES_MIN:
        raise ValueError(f"--max-bytes must be at least {BYTES_MIN}, got {largest}")
    count = 1 + int(math.log(largest / BYTES_MIN, STEP))
    return sorted({*(BYTES_MIN * STEP**k for k in range(count)), 4 * (largest // 4)})


def measure(comm: Communicator, largest: int, plan: Plan) -> dict[str, Any]:
    """Both at every length, and the fit; every rank calls. ValueError at one rank: nothing is sent."""
    if comm.size < 2:
        raise ValueError("bench reduce needs at least 2 ranks: mpiexec -n 2 apts-mpi bench reduce")
    results = [_compare(comm, nbytes, plan) for nbytes in sizes(largest)]
    points = [(entry["bytes"], entry["base_s"]["median"]) for entry in results]
    return {"results": results, "fit": fit(points, comm.size), "reduction": sorted(set(getattr(comm, "reductions", {}).values()))}


def _compare(comm: Communicator, nbytes: int, plan: Plan) -> dict[str, Any]:
    """A message whose buffer has ``nbytes`` in all; the flags word is part of it."""
    message = checked(comm.plan(max(1, nbytes // 4 - len(Flag)), torch.float32, torch.device("cpu"), []))
    raw = raw_sum(comm, message.host)
    once = clock(comm, raw, calls=3)
    calls = min(CALLS_MAX, max(1, math.ceil(BLOCK / once)))
    return {"bytes": message.host.nbytes, "calls": calls, **in_turn(comm, lambda: comm.sum_(message), raw, plan, calls)}


def fit(points: Sequence[tuple[int, float]], ranks: int) -> dict[str, float]:
    """alpha (s) and bandwidth (bytes/s) for which ``network`` is nearest to ``points`` (bytes, s), in relative least squares.

    Which of the two algorithms holds for a length depends on the answer, so both are found in turn.
    """
    chosen, latency, per_byte = [0] * len(points), 0.0, 0.0
    for _ in range(20):
        pairs = [terms(ranks)[index] for index in chosen]
        rows = np.array([(m / t, v * b / t) for (m, v), (b, t) in zip(pairs, points, strict=True)])
        latency, per_byte = _nonnegative(rows)
        before, chosen = chosen, [_better(ranks, latency, per_byte, b) for b, _ in points]
        if chosen == before:
            break
    network = Network(latency, 1 / per_byte if per_byte else 0.0, ranks)
    errors = [abs(network.seconds(b) / t - 1) for b, t in points]
    found = {"latency_s": latency, "bandwidth_bytes_per_s": network.bandwidth}
    return {**found, "error_median": float(np.median(errors)), "error_max": max(errors)}


def _better(ranks: int, latency: float, per_byte: float, nbytes: int) -> int:
    return min((0, 1), key=lambda index: terms(ranks)[index][0] * latency + terms(ranks)[index][1] * nbytes * per_byte)


def _nonnegative(rows: np.ndarray[Any, np.dtype[np.float64]]) -> tuple[float, float]:
    """x >= 0 with rows x nearest to 1."""
    ones = np.ones(len(rows))
    x = np.linalg.lstsq(rows, ones, rcond=None)[0]
    if min(x) >= 0:
        return float(x[0]), float(x[1])
    alone = [float(column @ ones / (column @ column)) for column in rows.T]
    misses = [float(np.sum((column * value - 1) ** 2)) for column, value in zip(rows.T, alone, strict=True)]
    return (alone[0], 0.0) if misses[0] <= misses[1] else (0.0, alone[1])
