"""What a gradient costs by how its samples go through the network: pieces of several sizes, and images with their channels last.

    python benchmarks/passes.py [--samples 8192] [--pieces 128 ... 8192] [--repeats 15] [--device cpu] [--out FILE.json]

The gradient of all samples, in pieces of each size against pieces of the size that the package takes, and of the residual network with
``model.channels_last`` against without; in turn, one thread, random data. About four minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from origin import origin
from quasi_newton import clock, interval
from steps import NETWORKS

from apts_mpi.config import ModelConfig
from apts_mpi.problem import evaluator
from apts_mpi.problem.evaluator import Evaluator
from apts_mpi.problem.flat import FlatModel
from apts_mpi.problem.losses import resolve_loss
from apts_mpi.problem.models import build_model
from apts_mpi.problem.objective import DataObjective, plan
from apts_mpi.problem.samples import Samples

CLASSES, OF_RESNET = 10, 512  # classes; samples of the residual network, a fortieth as fast
Facts = dict[str, Any]


def work(config: ModelConfig, shape: tuple[int, ...], samples: int, device: torch.device) -> Callable[[int], None]:
    """A gradient of all samples in pieces of so many."""
    random = torch.Generator().manual_seed(0)
    inputs, labels = torch.randn(samples, *shape, generator=random), torch.randint(0, CLASSES, (samples,), generator=random)
    flat = FlatModel(build_model(config, shape, CLASSES, 0), torch.float32, device, config)
    held = Samples([range(samples)], inputs.to(device), labels.to(device), dtype=torch.float32, device=device)
    orders = plan(samples, 1, batch=0, overlap=0.0, seed=0)
    objective = DataObjective(Evaluator(flat, resolve_loss("cross_entropy"), held), orders, range(1), 1)
    objective.select(0, 0)
    theta = flat.initial()
    grad = torch.zeros_like(theta)

    def gradient(piece: int) -> None:
        evaluator.PIECE[device.type] = piece
        objective.subdomains[0].owned(theta, grad)

    return gradient


def in_turn(runs: Mapping[str, Callable[[], None]], base: str, repeats: int, device: torch.device) -> list[Facts]:
    """Milliseconds of each, and its ratio to ``base``."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name in list(runs) if repeat % 2 else list(runs)[::-1]:
            ms = clock(runs[name], device)
            taken[name] += [ms] if repeat else []
    found = []
    for name, values in taken.items():
        ratios = [one / other for one, other in zip(values, taken[base], strict=True)]
        found.append({"case": name, "ms": statistics.median(values), "ratio": statistics.median(ratios), "interval": interval(ratios)})
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=8192)
    parser.add_argument("--pieces", type=int, nargs="+", default=[128, 256, 512, 1024, 2048, 4096, 8192])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="a JSON file with the lines and what made them")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    device, lines = torch.device(asked.device), []
    usual = evaluator.PIECE[device.type]
    for network, (shape, widths) in NETWORKS.items():
        gradient = work(ModelConfig(widths=widths), shape, asked.samples, device)
        pieces = sorted({min(piece, asked.samples) for piece in [*asked.pieces, usual]})
        runs = {f"{network}, pieces of {piece}": partial(gradient, piece) for piece in pieces}
        lines += in_turn(runs, f"{network}, pieces of {min(usual, asked.samples)}", asked.repeats, device)
    layouts = {words: work(ModelConfig("resnet", channels_last=last), NETWORKS["cifar10"][0], min(OF_RESNET, asked.samples), device)
               for words, last in (("resnet, channels first", False), ("resnet, channels last", True))}  # fmt: skip
    runs = {words: partial(gradient, usual) for words, gradient in layouts.items()}
    lines += in_turn(runs, "resnet, channels first", asked.repeats, device)
    for line in lines:
        print("{case:28} {ms:9.1f} ms  {ratio:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]".format(**line))
    if asked.out:
        facts = {"device": asked.device, "samples": asked.samples, "of_resnet": OF_RESNET, "load": os.getloadavg(), **origin()}
        asked.out.write_text(json.dumps({**facts, "lines": lines}, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
