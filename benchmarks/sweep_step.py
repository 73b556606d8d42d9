"""A step of the sweep against the bare gradient of its chunk, interleaved in one process, one thread.

    python benchmarks/sweep_step.py [--network mnist] [--samples 250 31] [--repeats 30] [--out FILE.json]

Bare: the chunk's gradient, written into one flat vector as the package writes it, and nothing else. Where the kernels are compiled the
step without them stands beside it. Ends with status 1 above the bar, which is set for chunks of 250 samples.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from origin import origin
from quasi_newton import clock, interval
from steps import NETWORKS

from apts_mpi import preset
from apts_mpi.native import extension, kernels
from apts_mpi.problem.evaluator import Evaluator
from apts_mpi.problem.flat import FlatModel
from apts_mpi.problem.losses import resolve_loss
from apts_mpi.problem.models import build_model
from apts_mpi.problem.objective import DataObjective, plan
from apts_mpi.problem.samples import Samples
from apts_mpi.recording import Recordings
from apts_mpi.solver.local import LocalStart, Spare
from apts_mpi.solver.sweep import Sweep

BAR, AT = 1.10, 250
CHUNKS, CLASSES, WARM_UP = 20, 10, 3
NAMES = ("step", "plain", "bare")


def measure(network: str, samples: int, repeats: int) -> dict[str, Any]:
    """Ratio of a solve to the gradients that it evaluates, at ``samples`` a chunk."""
    (shape, widths), device = NETWORKS[network], torch.device("cpu")
    config, random = preset("default", model={"name": "mlp", "widths": widths}), torch.Generator().manual_seed(0)
    total = CHUNKS * samples
    inputs, labels = torch.randn(total, *shape, generator=random), torch.randint(0, CLASSES, (total,), generator=random)
    flat = FlatModel(build_model(config.model, shape, CLASSES, 0), torch.float32, device)
    held = Samples([range(total)], inputs, labels, dtype=torch.float32, device=device)
    orders = plan(total, 1, batch=0, overlap=0.0, seed=0)
    objective = DataObjective(Evaluator(flat, resolve_loss("cross_entropy"), held), orders, range(1), 1)
    objective.select(0, 0)
    subdomain, theta = objective.subdomains[0], flat.initial()
    sweep, grad, out = Sweep(config.local, theta, Recordings(None)), torch.zeros_like(theta), torch.zeros_like(theta)
    chunks = subdomain.cut(sweep.chunk_count(subdomain))
    kept = torch.zeros(chunks, len(theta))
    subdomain.owned_by_chunk(theta, grad, kept)
    start = LocalStart(0, subdomain, theta, grad, 0.0, grad, kept, ball=1.0, radius_min=0.0, spare=Spare(*[out] * 4))
    steps, bare = config.local.passes * chunks, torch.zeros_like(theta)

    def gradients() -> None:
        for j in range(1, steps):
            subdomain.chunk_gradient(j % chunks, theta, bare)

    def plain() -> None:
        with mock.patch.object(kernels, "compiled", lambda like: False):
            sweep.solve(start, out)

    todo = {"step": (lambda: sweep.solve(start, out), steps), "plain": (plain, steps), "bare": (gradients, steps - 1)}
    if extension.extension() is None:
        del todo["plain"]
    rounds: list[dict[str, float]] = []
    for repeat in range(WARM_UP + repeats):
        taken = {name: clock(work, device) / count for name, (work, count) in todo.items()}
        rounds += [taken] if repeat >= WARM_UP else []
    found: dict[str, Any] = {"network": network, "n": len(theta), "samples": samples}
    for name in todo:
        ratios = [one[name] / one["bare"] for one in rounds]
        middle = statistics.median(one[name] for one in rounds)
        found[name] = {"ms": middle, "to_bare": statistics.median(ratios), "interval": interval(ratios)}
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", nargs="*", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--samples", nargs="*", type=int, default=[AT, 31])
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    found = [measure(network, samples, asked.repeats) for network in asked.network for samples in asked.samples]
    for one in found:
        print(f"{one['network']}, n = {one['n']:,}, {one['samples']} samples a chunk{f', bar {BAR}' if one['samples'] == AT else ''}:")
        for name, part in ((name, one[name]) for name in NAMES if name in one):
            print(f"  {name:6s} {part['ms']:6.2f} ms, to bare {part['to_bare']:.3f} [{part['interval'][0]:.3f}, {part['interval'][1]:.3f}]")
    if asked.out:
        facts = {**origin(), "load": os.getloadavg(), "bar": BAR, "results": found}
        asked.out.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return int(any(one["samples"] == AT and one["step"]["to_bare"] > BAR for one in found))


if __name__ == "__main__":
    sys.exit(main())
