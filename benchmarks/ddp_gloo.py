"""Our per-step SGD against torch's DistributedDataParallel, interleaved in one run.

    mpiexec -n 2 python benchmarks/ddp_gloo.py [--batches 16,64,256,1024] [--network mnist] [--steps 20] [--repeats 20]

The same model, first parameters, samples, order and batch, and torch's fused SGD with momentum in both. DDP runs over gloo, over
nccl when every rank has a GPU, with gradients as views of its buckets. It is given its batches by ready row numbers and never asked
for the loss, while our step orders the data, returns loss and gradient norm and looks for numbers that are not finite: what differs
is in DDP's favour. Timed: blocks of steps of ours (one flat sum a step), of ours overlapped (CPU only), and of DDP, in turn; of
every block the slowest rank counts. One node, one thread a rank. Ends with status 1 below the bar: at 16 samples a rank DDP
takes twice as long at least, and at no batch less.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.distributed as dist
from gloo import connect
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from apts_mpi.bench.measure import clock, interval
from apts_mpi.contracts import Communicator
from apts_mpi.parallel import launch
from apts_mpi.parallel.devices import choose_device
from apts_mpi.partition import block
from apts_mpi.presets import preset
from apts_mpi.problem.flat import FlatModel
from apts_mpi.problem.losses import resolve_loss
from apts_mpi.problem.models import mlp
from apts_mpi.problem.objective import DataObjective, Evaluator, plan
from apts_mpi.problem.samples import Samples
from apts_mpi.solver.build import Stepper, build_stepper
from apts_mpi.timing import Timers

BARS = {16: 2.0}  # at other batches 1
MINIBATCHES = 16  # in an epoch
WIDTHS = {"mnist": (784, (512, 256)), "cifar10": (3072, (512, 512))}
KEYS = {"lr": 0.01, "momentum": 0.9}


def network(name: str) -> nn.Module:
    features, widths = WIDTHS[name]
    torch.manual_seed(0)
    return mlp((features,), 10, widths)


class Ours:
    """Our stepper on this rank's share; one subdomain a rank."""

    def __init__(self, comm: Communicator, name: str, batch: int, data: tuple[Tensor, Tensor], device: torch.device, overlap: bool) -> None:
        total = batch * comm.size * MINIBATCHES
        orders = plan(total, comm.size, batch=batch * comm.size, overlap=0.0, seed=0)
        mine = block(comm.size, comm.size, comm.rank)
        held = Samples([orders[comm.rank].indices], *data, dtype=torch.float32, device=device)
        self.order = orders[comm.rank]
        flat = FlatModel(network(name), torch.float32, device)
        objective = DataObjective(Evaluator(flat, resolve_loss("cross_entropy"), held), orders, mine, MINIBATCHES)
        config = preset("default", "sgd", baseline={**KEYS, "overlap": overlap})
        timers = Timers(torch.cuda.synchronize if device.type == "cuda" else None)
        self.stepper: Stepper = build_stepper(config, flat.initial(), objective, comm, timers, comm.size)

    def rows(self, k: int) -> Tensor:
        """The rank's samples of step k, as numbers of its own block."""
        chosen = np.concatenate(self.order.of_batch(k // MINIBATCHES, k % MINIBATCHES)) - self.order.indices.start
        return torch.from_numpy(chosen)

    def step(self, k: int) -> None:
        self.stepper.step(k // MINIBATCHES, k % MINIBATCHES)


class Theirs:
    """DDP on the same samples in the same order."""

    def __init__(self, ours: Ours, name: str, data: tuple[Tensor, Tensor], device: torch.device, steps: int) -> None:
        self.inputs, self.targets = data[0].to(device), data[1].to(device)
        self.rows = [ours.rows(k).to(device) for k in range(steps)]
        self.model = DistributedDataParallel(network(name).to(device), gradient_as_bucket_view=True)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=KEYS["lr"], momentum=KEYS["momentum"], fused=True)

    def step(self, k: int) -> None:
        rows = self.rows[k]
        self.optimizer.zero_grad()
        functional.cross_entropy(self.model(self.inputs[rows]), self.targets[rows]).backward()
        self.optimizer.step()

    def theta(self) -> Tensor:
        return torch.cat([p.detach().reshape(-1) for p in self.model.parameters()])


def run(step: Callable[[int], None], steps: range, device: torch.device) -> None:
    for k in steps:
        step(k)
    if device.type == "cuda":
        torch.cuda.synchronize()


def measure(comm: Communicator, name: str, batch: int, device: torch.device, steps: int, repeats: int) -> dict[str, object]:
    """Seconds a step of the three, and DDP's over ours, at one batch."""
    generator = torch.Generator().manual_seed(comm.rank)
    count = batch * MINIBATCHES
    data = torch.randn(count, WIDTHS[name][0], generator=generator), torch.randint(10, (count,), generator=generator)
    ours = Ours(comm, name, batch, data, device, overlap=False)
    theirs = Theirs(ours, name, data, device, steps * (repeats + 1))
    kinds: dict[str, Callable[[int], None]] = {"ours": ours.step, "ddp": theirs.step}
    if device.type == "cpu":
        kinds["overlapped"] = Ours(comm, name, batch, data, device, overlap=True).step
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    apart = 0.0
    for repeat in range(repeats + 1):
        for kind, step in list(kinds.items())[:: 1 if repeat % 2 else -1]:
            taken = clock(comm, partial(run, step, range(repeat * steps, (repeat + 1) * steps), device))
            times[kind] += [taken / steps] if repeat else []  # the first is the warm-up
        if repeat == 0:
            difference = torch.linalg.vector_norm(ours.stepper.theta - theirs.theta())
            apart = float(difference / torch.linalg.vector_norm(theirs.theta()))
    result: dict[str, object] = {"batch": batch, "relative_difference_of_theta": apart}
    for kind, values in times.items():
        result[f"{kind}_us"] = 1e6 * statistics.median(values)
        if kind != "ddp":
            ratios = [theirs / mine for theirs, mine in zip(times["ddp"], values, strict=True)]
            result[f"{kind}_ratio"], result[f"{kind}_ratio_95"] = statistics.median(ratios), interval(ratios)
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", default="16,64,256,1024", help="samples per rank and step")
    parser.add_argument("--network", choices=WIDTHS, default="mnist")
    parser.add_argument("--steps", type=int, default=20, help="in a block")
    parser.add_argument("--repeats", type=int, default=20, help="blocks, after one of warm-up")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    comm = launch.start()
    device = choose_device("auto", comm)
    backend, missed = connect(comm, device), False
    for batch in map(int, arguments.batches.split(",")):
        result = measure(comm, arguments.network, batch, device, arguments.steps, arguments.repeats)
        bar, ratio = BARS.get(batch, 1.0), float(str(result["ours_ratio"]))
        wrong = float(str(result["relative_difference_of_theta"])) > 1e-3
        missed = missed or ratio < bar or wrong
        if comm.rank == 0:
            facts = {"network": arguments.network, "ranks": comm.size, "backend": backend, "device": device.type, "mpi": comm.library}
            print(json.dumps(facts | result | {"bar": bar}))
            low, high = result["ours_ratio_95"]  # type: ignore[misc]
            note = ", NOT THE SAME RUN" if wrong else ""
            print(f"B = {batch}: DDP / ours {ratio:.2f} [{low:.2f}, {high:.2f}], bar {bar:g}{note}", flush=True)
    dist.destroy_process_group()
    launch.finish(comm)
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
