"""An outer iteration against its floor: its own bare gradient evaluations and sums.

The floor is what the arithmetic and the wire cost without the package: on each rank in plain torch the very passes through the network
that this rank has made, each over as many samples and with or without a gradient, and as many in-place MPI_Allreduce calls of n numbers.
Ranks whose subdomains take different numbers of local iterations wait for each other on both sides; how uneven they are is told beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from apts_mpi import timing
from apts_mpi.bench.measure import Plan, clock, compared, summary
from apts_mpi.config import Config
from apts_mpi.contracts import Communicator, StepInfo
from apts_mpi.parallel.raw import raw_sum
from apts_mpi.partition import block, check_counts
from apts_mpi.problem.evaluator import Evaluator
from apts_mpi.problem.flat import PLAIN, FlatModel
from apts_mpi.problem.forward import Forward
from apts_mpi.problem.losses import Loss, resolve_loss
from apts_mpi.problem.models import build_model
from apts_mpi.problem.objective import DataObjective, needed_ranges
from apts_mpi.problem.objective import plan as plan_order
from apts_mpi.problem.samples import Samples
from apts_mpi.solver.build import Stepper, build_stepper, check_method, outer_per_epoch
from apts_mpi.train import instrumented

CPU = torch.device("cpu")
BATCHES = 2  # so that each is a fresh one
CLASSES = 10


class Pass(NamedTuple):
    """One pass through the network."""

    samples: int
    gradient: bool  # and back

    @property
    def work(self) -> float:
        """In gradients of one sample, of which a forward pass alone costs a third."""
        return self.samples if self.gradient else self.samples / 3


class Noting(Forward):
    """A network that notes what passes through it."""

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        super().__init__(module, dtype, PLAIN)
        self.noted: list[Pass] = []

    def __call__(self, inputs: Tensor) -> Tensor:
        """As a plain one."""
        self.noted.append(Pass(len(inputs), torch.is_grad_enabled()))
        return super().__call__(inputs)


class Bare:
    """The same passes without the package: a module of its own, gradients into its parameters."""

    def __init__(
        self, module: nn.Module, loss: Loss, inputs: Tensor, targets: Tensor, reduce: Callable[[], object], piece: int,
    ) -> None:  # fmt: skip
        self.module, self.loss, self.inputs, self.targets, self.reduce, self._piece = module, loss, inputs, targets, reduce, piece
        self._next = 0  # the sample to go on from: always the same ones would stay in the cache

    def run(self, passes: Iterable[Pass], reductions: int) -> None:
        """All passes of an outer iteration, and its sums. A pass of fewer than ``piece`` samples is the last one of its gradient."""
        begins = True
        for samples, gradient in passes:
            if gradient:
                if begins:
                    self.module.zero_grad(set_to_none=True)
                torch.autograd.backward(self._losses(samples).sum())
                begins = samples < self._piece
            else:
                with torch.no_grad():
                    self._losses(samples).sum()
        for _ in range(reductions):
            self.reduce()

    def _losses(self, samples: int) -> Tensor:
        assert samples <= len(self.inputs), "a pass over more samples than this rank holds"
        start = self._next if self._next + samples <= len(self.inputs) else 0
        self._next = stop = start + samples
        return self.loss(self.module(self.inputs[start:stop]), self.targets[start:stop])


@dataclass(frozen=True)
class Rig:
    """A stepper on random data, and what it is made of."""

    stepper: Stepper
    passes: list[Pass]  # through the network so far, on this rank
    timers: timing.Timers
    inputs: Tensor  # this rank's
    targets: Tensor
    n_params: int
    samples: int  # per rank and minibatch
    piece: int  # of a pass through the network, at most
    per_epoch: int  # outer iterations in an epoch

    def step(self, k: int) -> StepInfo:
        """Outer iteration k; every rank calls."""
        return self.stepper.step(k // self.per_epoch, k % self.per_epoch)


def build(comm: Communicator, config: Config, shape: tuple[int, ...], samples: int, batches: int = BATCHES) -> Rig:
    """The stepper of ``config`` with ``samples`` random samples of ``shape`` per rank in each of ``batches`` minibatches; every rank calls.

    Random data borrow nothing from their neighbours: ``data.overlap`` and ``data.batch`` have no say here. ValueError on every rank.
    """
    comm.configure(config.comm.reduction, config.comm.count_limit)
    subdomains, total = config.solver.subdomains or comm.size, samples * comm.size
    check_counts(batches * total, subdomains, comm.size)
    check_method(config, batches, CPU)
    orders = plan_order(batches * total, subdomains, batch=total, overlap=0.0, seed=config.run.seed)
    mine, dtype = block(subdomains, comm.size, comm.rank), getattr(torch, config.model.dtype)
    ranges = [r for r in needed_ranges(orders, mine) if len(r)]
    generator = torch.Generator().manual_seed(comm.rank)
    inputs = torch.randn(sum(map(len, ranges)), *shape, generator=generator, dtype=dtype)
    targets = torch.randint(CLASSES, (len(inputs),), generator=generator)
    flat = FlatModel(build_model(config.model, shape, CLASSES, config.run.seed), dtype, CPU)
    flat.forward = noting = Noting(flat.module, dtype)
    held = Samples(ranges, inputs, targets, dtype=dtype, device=CPU)
    evaluator = Evaluator(flat, resolve_loss(config.model.loss), held)
    objective = DataObjective(evaluator, orders, mine, batches)
    timers = timing.Timers()
    stepper = build_stepper(config, flat.initial(), objective, instrumented(comm, config, timers), timers, subdomains)
    return Rig(stepper, noting.noted, timers, inputs, targets, flat.n_params, samples, evaluator.piece, outer_per_epoch(config, batches))


def measure(comm: Communicator, config: Config, shape: tuple[int, ...], samples: int, plan: Plan) -> dict[str, Any]:
    """Outer iterations on the random data of ``build``, each with its floor; every rank calls."""
    rig, dtype = build(comm, config, shape, samples), config.model.dtype
    twin = build_model(config.model, shape, CLASSES, config.run.seed).to(getattr(torch, dtype))
    reduce = raw_sum(comm, np.zeros(rig.n_params, dtype))
    bare = Bare(twin, resolve_loss(config.model.loss), rig.inputs[:samples], rig.targets[:samples], reduce, rig.piece)
    found = _run(comm, rig, bare, plan)
    table = timing.table(comm.gather(rig.timers.row()))
    middle, (low, high) = found["busiest_to_mean"].values()
    told = [f"work of the busiest rank / mean: {middle:.3f} [{low:.3f}, {high:.3f}]"] if comm.size > 1 else []
    return {**found, "n_params": rig.n_params, "samples_per_rank": samples, "table": timing.render(table) + told}


def _run(comm: Communicator, rig: Rig, bare: Bare, plan: Plan) -> dict[str, Any]:
    """An outer iteration, then a floor of exactly each rank's passes, again and again."""
    ours, floors, infos, uneven = list[float](), list[float](), list[StepInfo](), list[float]()
    for k in range(plan.warm_up + plan.repeats):
        rig.timers.phase(timing.RUN if k >= plan.warm_up else timing.WARM_UP)
        before = len(rig.passes)
        ours.append(clock(comm, lambda k=k: infos.append(rig.step(k))))  # type: ignore[misc]
        rig.timers.phase(timing.SET_UP)  # the floor has no place in the table of the run
        passes, reductions = rig.passes[before:], infos[-1].reductions
        floors.append(clock(comm, lambda passes=passes, reductions=reductions: bare.run(passes, reductions)))  # type: ignore[misc]
        each = [row[0] for row in comm.gather([sum(one.work for one in passes)])]
        uneven.append(max(each) * len(each) / sum(each))
    kept = infos[plan.warm_up :]
    evaluated = [info.gradient_samples / (len(bare.inputs) * comm.size) for info in kept]
    return {
        **compared(ours[plan.warm_up :], floors[plan.warm_up :]),
        "evaluations_per_iteration": float(np.median(evaluated)),
        "reductions_per_iteration": float(np.median([info.reductions for info in kept])),
        "busiest_to_mean": summary(uneven[plan.warm_up :]),
    }
