"""An outer iteration against its own bare gradient evaluations and Allreduces, interleaved in one run.

    mpiexec -n 2 python benchmarks/outer_iteration.py [--samples 5000] [--preset default] [--repeats 20]

The floor is what the arithmetic and the wire cost without the package: plain torch forward and backward passes
over as many samples as the iteration evaluated, on the same tensors, and as many in-place MPI_Allreduce calls of
n numbers. Both are timed in turn; of every pair the slowest rank counts. One thread a rank. Ends with status 1
above the bar.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from mpi4py import MPI
from torch import nn
from torch.nn import functional

from apts_mpi import timing
from apts_mpi.config import PRESETS, preset
from apts_mpi.parallel import launch
from apts_mpi.partition import block
from apts_mpi.problem.flat import FlatModel
from apts_mpi.problem.losses import resolve_loss
from apts_mpi.problem.models import mlp
from apts_mpi.problem.objective import DataObjective, Evaluator, needed_ranges, plan
from apts_mpi.problem.samples import Samples
from apts_mpi.solver.apts import APTS

BAR = 1.15  # at 5,000 samples per rank
CPU = torch.device("cpu")
WIDTHS = {"mnist": (784, (512, 256)), "cifar10": (3072, (512, 512))}


class Bare:
    """The same evaluations without the package: a module of its own, gradients into its parameters."""

    def __init__(self, module: nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> None:
        self.module, self.inputs, self.targets = module, inputs, targets
        self.piece = 1024
        self.message = np.zeros(sum(p.numel() for p in module.parameters()), np.float32)

    def gradient(self, samples: int) -> None:
        """A gradient over ``samples`` samples, piece by piece."""
        for p in self.module.parameters():
            p.grad = torch.zeros_like(p)
        for start in range(0, samples, self.piece):
            stop = min(start + self.piece, samples)
            functional.cross_entropy(self.module(self.inputs[start:stop]), self.targets[start:stop], reduction="sum").backward()

    def run(self, samples: int, reductions: int) -> None:
        """All evaluations of an outer iteration, and its reductions."""
        per_pass = len(self.inputs)
        for _ in range(samples // per_pass):
            self.gradient(per_pass)
        self.gradient(samples % per_pass)
        for _ in range(reductions):
            MPI.COMM_WORLD.Allreduce(MPI.IN_PLACE, self.message)


def clock(work: Callable[[], object]) -> float:
    """Seconds of the slowest rank."""
    MPI.COMM_WORLD.Barrier()
    start = time.perf_counter()
    work()
    return MPI.COMM_WORLD.allreduce(time.perf_counter() - start, MPI.MAX)


def interval(values: list[float]) -> tuple[float, float]:
    """95 % confidence interval of the median, by bootstrap."""
    draws = np.random.default_rng(0).choice(values, (4000, len(values)))
    low, high = np.percentile(np.median(draws, axis=1), [2.5, 97.5])
    return float(low), float(high)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=5000, help="per rank and minibatch")
    parser.add_argument("--network", choices=WIDTHS, default="mnist")
    parser.add_argument("--preset", choices=PRESETS, default="default")
    parser.add_argument("--iters", type=int, default=0, help="nu, default that of the preset")
    parser.add_argument("--repeats", type=int, default=20)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    comm = launch.start()
    features, widths = WIDTHS[arguments.network]
    samples = 2 * arguments.samples * comm.size  # two minibatches, so that each is a fresh one
    orders = plan(samples, comm.size, batch=samples // 2, overlap=0.0, seed=0)
    mine = block(comm.size, comm.size, comm.rank)
    generator = torch.Generator().manual_seed(comm.rank)
    inputs = torch.randn(2 * arguments.samples, features, generator=generator)
    targets = torch.randint(10, (2 * arguments.samples,), generator=generator)
    torch.manual_seed(0)
    module = mlp((features,), 10, widths)
    bare = Bare(mlp((features,), 10, widths), inputs[: arguments.samples], targets[: arguments.samples])
    held = Samples([r for r in needed_ranges(orders, mine) if len(r)], inputs, targets, dtype=torch.float32, device=CPU)
    flat = FlatModel(module, torch.float32, CPU)
    objective = DataObjective(Evaluator(flat, resolve_loss("cross_entropy"), held), orders, mine, 2)
    config = preset(arguments.preset, **({"local": {"iters": arguments.iters}} if arguments.iters else {}))
    timers = timing.Timers()
    solver = APTS(flat.initial(), objective, comm, timers, config, comm.size)
    ratios, steps, floors, reductions, passes = [], [], [], [], []
    for k in range(arguments.repeats + 3):
        before = counts(solver)
        taken = clock(lambda k=k: solver.step(k // 2, k % 2))
        gradients, values, reduced = (now - then for now, then in zip(counts(solver), before, strict=True))
        work = (gradients + values // 3) // comm.size  # a forward pass alone costs a third
        floor = clock(lambda work=work, reduced=reduced: bare.run(work, reduced))
        if k >= 3:  # warm-up: the memory of the model fills, the allocator settles
            ratios.append(taken / floor)
            steps.append(taken)
            floors.append(floor)
            reductions.append(reduced)
            passes.append(gradients / (arguments.samples * comm.size))
        if k == 2:
            timers.phase(timing.RUN)
    rows = comm.gather(timers.row())
    if comm.rank == 0:
        low, high = interval(ratios)
        result = {
            "network": arguments.network, "preset": arguments.preset, "n": flat.n_params, "ranks": comm.size,
            "samples_per_rank": arguments.samples, "evaluations_per_iteration": float(np.median(passes)),
            "reductions_per_iteration": int(np.median(reductions)), "iteration_s": float(np.median(steps)),
            "floor_s": float(np.median(floors)), "ratio": float(np.median(ratios)), "ratio_95": [low, high],
            "repeats": len(ratios), "bar": BAR,
        }  # fmt: skip
        print("\n".join(timing.render(timing.table(rows))))
        print(json.dumps(result))
        print(f"ratio {result['ratio']:.3f} [{low:.3f}, {high:.3f}], bar {BAR}")
    median = float(np.median(ratios))
    launch.finish(comm)
    return int(median > BAR)


def counts(solver: APTS) -> tuple[int, int, int]:
    """Gradient samples, value samples and vector reductions so far."""
    exchange = solver._exchange
    return exchange.gradient_samples, exchange.value_samples, exchange.reductions


if __name__ == "__main__":
    sys.exit(main())
