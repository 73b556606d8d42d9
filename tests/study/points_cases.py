"""A made-up study with everything a report must cope with, from numbers that are known."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from apts_mpi.study.points import Point, Points

MACHINE: Mapping[str, Any] = {
    "git_commit": "c0ffee", "package_version": "0.1.0", "source_sha256": "ab" * 32, "versions": {"python": "3.11", "torch": "2.13"},
    "mpi_library": "MPICH Version: 5.0.2", "system": "Linux 6.1 x86_64", "hosts": ["n1"], "threads_per_rank": 1, "data_fingerprint": "da7a",
    "environment": {"OMP_NUM_THREADS": "1"}, "started_utc": "2026-01-02T03:04:05+00:00",
}  # fmt: skip
SERIAL = {"APTS": 0.10, "SGD": 0.20, "local SGD": 0.30}  # share of the work that does not run in parallel
BASE = {"APTS": 2.0, "SGD": 0.05, "local SGD": 0.4}  # seconds of an outer iteration at one rank
ITERATIONS = {"APTS": 20, "SGD": 300, "local SGD": 60}
PASSES = {"APTS": 7.0, "SGD": 0.1, "local SGD": 0.8}  # of an outer iteration
KINDS = {"APTS": "apts", "SGD": "sgd", "local SGD": "local-sgd"}
WOBBLE = (1.0, 1.03, 0.97, 1.05, 0.99, 1.01, 1.02, 0.98)  # of repetitions


def seconds(method: str, scaling: str, ranks: int, network: str = "") -> float:
    """Amdahl in strong scaling, 3 % longer for each doubling in weak; the emulated network costs more."""
    serial = SERIAL[method]
    size = serial + (1 - serial) / ranks if scaling == "strong" else 1 + 0.03 * math.log2(ranks)
    return BASE[method] * size * (1.3 if network and ranks > 1 else 1.0)


def point(method: str = "APTS", scaling: str = "strong", ranks: int = 1, repetition: int = 0, network: str = "", **changes: Any) -> Point:
    """One run that reached its target in its last iteration."""
    wobble = WOBBLE[repetition % len(WOBBLE)]
    each, count = seconds(method, scaling, ranks, network) * wobble, ITERATIONS[method]
    weak = ranks if scaling == "weak" else 1
    volume = 0 if ranks == 1 else 4 * 50_000 * count * (3 if method == "APTS" else 1)
    passes = PASSES[method] * count
    made = Point(
        run="-".join(x for x in (method.lower().replace(" ", "-"), network, scaling, f"P{ranks}", f"rep{repetition}") if x),
        method=method, kind=KINDS[method], network=network, scalings=(scaling,), ranks=ranks, nodes=1,
        subdomains=ranks if scaling == "weak" else 8, per_rank=1, samples=6000 * weak, batch=6000 * weak, seed=0, repetition=repetition,
        n_params=50_000, oversubscribed=False, noisy=False, status="target reached", iterations=count, iteration_seconds=each,
        iteration_low=0.98 * each, iteration_high=1.02 * each, run_seconds=each * count, passes=passes, value_passes=1.0 * count,
        reductions=3 * count if method == "APTS" else count, messages=4 * count, bytes=volume, local_iters=5.0, loss=0.11, accuracy=97.2,
        target_iterations=float(count), target_seconds=each * count, target_passes=passes,
        target_reductions=float(3 * count if method == "APTS" else count), target_bytes=float(volume), phases=phases(method, each, ranks),
        curve=curve(count, passes, volume, each * count), flops_per_gradient=3e5, machine=MACHINE,
    )  # fmt: skip
    return replace(made, **changes)


def phases(method: str, each: float, ranks: int) -> dict[str, float]:
    """Seconds by region."""
    sums = 0.05 * math.log2(ranks)
    shares = {"local solve": 0.6, "evaluate": 0.2, "model": 0.08} if method == "APTS" else {"evaluate": 0.88}
    rest = {"pack": 0.03, "accept": 0.02, "test": 0.01, "io": 0.005, "other": 0.055}
    scaled = {name: (1 - sums) * share * each for name, share in {**shares, **rest}.items()}
    return {**scaled, "reduce": sums * each}


def curve(count: int, passes: float, volume: float, duration: float) -> dict[str, list[float]]:
    """Loss and accuracy on the way to the target; accuracy is known at every other entry."""
    entries = min(count, 60)
    parts = [(k + 1) / entries for k in range(entries)]
    accuracy = [97.2 - 40 * (1 - t) ** 2 if k % 2 or k == entries - 1 else math.nan for k, t in enumerate(parts)]
    return {
        "passes": [passes * t for t in parts], "bytes": [volume * t for t in parts], "seconds": [duration * t for t in parts],
        "loss": [2.3 * math.exp(-3 * t) for t in parts], "accuracy": accuracy,
    }  # fmt: skip


def study(ranks: tuple[int, ...] = (1, 2, 4), repetitions: int = 8, networks: tuple[str, ...] = ("", "cloud")) -> Points:
    """Strong and weak scaling of three methods; 4 ranks are oversubscribed, local SGD misses its target there in weak scaling."""
    found = []
    for repetition in range(repetitions):
        for scaling in ("strong", "weak"):
            for network in networks:
                for method in KINDS:
                    for P in ranks:
                        found.append(_odd(point(method, scaling, P, repetition, network)))
    tuning = {"SGD": {"best_lr": 0.1, "runs": 6, "passes": 60.0, "reductions": 1800, "bytes": 1000, "seconds": 33.0}}
    failed = ("sgd-strong-P2-rep9",)
    return Points("made-up", "A made-up study", 1, repetitions, 97.0, len(found) + 1, failed, tuple(found), 'name = "made-up"\n', tuning)


def _odd(run: Point) -> Point:
    missed = run.method == "local SGD" and run.scalings == ("weak",) and run.ranks == 4
    names = ("iterations", "seconds", "passes", "reductions", "bytes")
    lost = {f"target_{name}": math.nan for name in names} if missed else {}
    noisy = (run.method, run.ranks, run.repetition) == ("APTS", 2, 3)
    return replace(run, oversubscribed=run.ranks == 4, noisy=noisy, **({**lost, "accuracy": 95.5} if missed else {}))


def predictions(points: Points, factor: float = 1.04) -> dict[str, dict[str, float]]:
    """A cost model that is 4 % too slow and a floor of 80 %."""
    return {p.run: {"seconds": factor * p.iteration_seconds, "floor": 0.8 * p.iteration_seconds} for p in points.points}
