"""Each compiled kernel against its torch twin, interleaved, beside the time of a copy.

    OMP_NUM_THREADS=1 python benchmarks/kernels.py [--n 535818 5000000] [--memory 10] [--repeats 25] [--device cpu] [--out FILE]

float32, one thread of the host. The last line of the table is L-SR1's whole local iteration (``propose_``,
``observe_``, ``accept``), whose twin are the blocks of ``solver/lsr1.py``. A ratio below 1 is a gain.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from origin import origin
from quasi_newton import Iteration, clock, interval

from apts_mpi.native import extension, kernels, twins

WARM_UP = 4


def pairs_of(n: int, memory: int, device: torch.device) -> dict[str, tuple[Callable[[], object], Callable[[], object], int]]:
    """(kernel, twin, words that the kernel moves) by name."""
    rows, *vectors = torch.randn(2 * memory + 2, n, device=device), *(torch.randn(n, device=device) for _ in range(5))
    grad, other, third, out, trial = vectors
    chosen, weights, used = list(range(2 * memory)), [0.01] * (2 * memory), 2 * memory
    small = 1e-30 * torch.randn(n, device=device)
    iteration = Iteration(n, memory, device)
    for _ in range(memory + 7):
        iteration.prepare()
        iteration.run()
        iteration.finish()
    iteration.prepare()

    def whole(compiled: bool) -> None:
        with mock.patch.object(kernels, "compiled", lambda like: compiled):
            iteration.model._spectrum = None
            iteration.run()

    found: dict[str, tuple[Callable[[], object], Callable[[], object], int]] = {
        "observe_": (
            lambda: kernels.observe_(rows, used, used, grad, other), lambda: twins.observe_(rows, used, used, grad, other), used + 4,
        ),
        "combine_": (
            lambda: kernels.combine_(rows, chosen, weights, 0.5, grad, out),
            lambda: twins.combine_(rows, chosen, weights, 0.5, grad, out), used + 2,
        ),
        "reach_": (
            lambda: kernels.reach_(small, grad, other, third, out, trial), lambda: twins.reach_(small, grad, other, third, out, trial), 6,
        ),
        "iteration": (lambda: whole(True), lambda: whole(False), 2 * used + 6),
    }  # fmt: skip
    found["blend_"] = (lambda: kernels.blend_(out, small, grad, third, 0.9), lambda: twins.blend_(out, small, grad, third, 0.9), 5)
    if device.type != "cpu":
        squares, stride = kernels.square(grad), torch.tensor(1e-30, device=device)
        found["advance_"] = (
            lambda: kernels.advance_(out, grad, stride, squares), lambda: twins.advance_(out, grad, stride, squares), 3,
        )  # fmt: skip
    return found


def measure(n: int, memory: int, repeats: int, device: torch.device) -> dict[str, Any]:
    source = torch.randn(2 * memory, n, device=device)
    target, found = torch.empty_like(source), {}
    for name, (kernel, twin, words) in pairs_of(n, memory, device).items():
        times: list[tuple[float, float, float]] = []
        for repeat in range(WARM_UP + repeats):
            first = clock(kernel, device) if repeat % 2 else None
            second = clock(twin, device)
            taken = (clock(kernel, device) if first is None else first, second, clock(lambda: target.copy_(source), device))
            times += [taken] if repeat >= WARM_UP else []
        ratios = [kernel / twin for kernel, twin, _ in times]
        kernel_ms, twin_ms, copy_ms = (statistics.median(column) for column in zip(*times, strict=True))
        shares = [copy * words / (4 * memory) / kernel for kernel, _, copy in times]
        quartiles = np.percentile([copy for *_, copy in times], [25, 75])
        found[name] = {
            "kernel_ms": kernel_ms, "twin_ms": twin_ms, "ratio": statistics.median(ratios), "interval": interval(ratios),
            "best_ms": [min(column) for column in zip(*times, strict=True)], "words": words,
            "kernel_interval_ms": interval([kernel for kernel, *_ in times]),
            "bound_ms": copy_ms * words / (4 * memory), "share_of_copy": statistics.median(shares), "share_interval": interval(shares),
            "copy_spread": float(quartiles[1] - quartiles[0]) / copy_ms,
        }  # fmt: skip
        low, high, least, most = *found[name]["interval"], *found[name]["share_interval"]
        print(f"{n:8d} {name:10s} {kernel_ms:8.2f} ms, twin {twin_ms:8.2f}, copy of its words {found[name]['bound_ms']:8.2f}, "
              f"ratio {found[name]['ratio']:.2f} [{low:.2f}, {high:.2f}], "
              f"share of the copy's bandwidth {found[name]['share_of_copy']:.2f} [{least:.2f}, {most:.2f}]", flush=True)  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, nargs="+", default=[535_818, 5_000_000])
    parser.add_argument("--memory", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if extension.extension() is None:
        parser.error(f"nothing to compare: {extension.state()}")
    torch.set_num_threads(1)
    device = torch.device(arguments.device)
    load, started = os.getloadavg(), datetime.now(UTC).isoformat(timespec="seconds")
    results = {str(n): measure(n, arguments.memory, max(arguments.repeats, 15), device) for n in arguments.n}
    if arguments.out:
        facts = {
            "memory": arguments.memory, "dtype": "float32", "threads": 1, "repeats": max(arguments.repeats, 15), "started_utc": started,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu", "load_before": load,
            **origin(),
        }  # fmt: skip
        arguments.out.write_text(json.dumps({**facts, "results": results}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
