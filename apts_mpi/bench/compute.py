"""The constants of a machine that ``study/cost`` prices an outer iteration with: gradients, vectors, quasi-Newton steps, messages.

All ranks compute at once, as in a run, since they share memory bandwidth and power. The works take turns, so that
whatever else the machine does meets all of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from apts_mpi.baseline import ALL_REDUCE
from apts_mpi.bench.measure import Plan, Work, clock, summary
from apts_mpi.bench.step import BATCHES, CLASSES, CPU
from apts_mpi.config import Config
from apts_mpi.contracts import Communicator, no_wishes
from apts_mpi.native import kernels
from apts_mpi.parallel.checked import squares, total
from apts_mpi.parallel.serial import SerialCommunicator
from apts_mpi.problem.evaluator import PIECE, Evaluator
from apts_mpi.problem.flat import FlatModel
from apts_mpi.problem.losses import Loss, resolve_loss
from apts_mpi.problem.models import build_model
from apts_mpi.problem.objective import READY_BYTES, DataObjective, needed_ranges
from apts_mpi.problem.objective import plan as plan_order
from apts_mpi.problem.samples import Samples
from apts_mpi.problem.watch import ranges
from apts_mpi.solver.baselines import optimizer
from apts_mpi.solver.exchange import Exchange
from apts_mpi.solver.lsr1 import LSR1
from apts_mpi.solver.model import square
from apts_mpi.solver.vectors import dot
from apts_mpi.timing import Timers

SIZES = (1, 4, 16, 64, 128, 250, 512, PIECE["cpu"])  # samples of a rank
BLOCK = 2e-3  # s that one measurement should last
CALLS_MAX = 100
LARGE = 64_000_000  # bytes that no cache holds
ROWS = 8  # chunk gradients that are combined

Seconds = Mapping[str, Sequence[float]]


def measure(comm: Communicator, config: Config, shape: tuple[int, ...], plan: Plan, outputs: int = CLASSES) -> dict[str, Any]:
    """All constants, for the model of ``config`` on random images of ``shape`` with ``outputs`` classes; every rank calls."""
    dtype, loss = getattr(torch, config.model.dtype), resolve_loss(config.model.loss)
    flat = FlatModel(build_model(config.model, shape, outputs, config.run.seed).to(dtype), dtype, CPU)
    objectives = {size: _objective(flat, loss, shape, size, comm.rank, outputs) for size in SIZES}
    memory = max(config.local.memory, config.global_step.memory)
    works, model = _works(flat, objectives, config), _QuasiNewton(flat.n_params, memory, dtype)
    parts = {size: _Parts(flat, objectives[size], config.baseline.bucket) for size in SIZES}
    calls = {name: _calls(comm, work) for name, work in works.items()}
    seconds: dict[str, list[float]] = {}
    for index in range(plan.warm_up + plan.repeats):
        found = {name: clock(comm, work, calls[name]) for name, work in works.items()}
        found |= {f"lsr1 {name}": value for name, value in model.run(comm).items()}
        found |= {f"parts {size} {i}": value for size, part in parts.items() for i, value in enumerate(part.run(comm))}
        if index >= plan.warm_up:
            for name, value in found.items():
                seconds.setdefault(name, []).append(value)
    return {
        "n_params": flat.n_params, "itemsize": dtype.itemsize, "numbers": math.prod(shape),
        "piece": PIECE["cpu"], "ready_bytes": READY_BYTES["cpu"], "combine_rows": ROWS,
        **{name: _by_size(name, seconds) for name in ("gradient", "value", "chunk", "select", "take")},
        **{name: _by_name(name, seconds) for name in ("vector", "optimizer", "message")},
        "copy": _rates(seconds, {"copy": flat.n_params * dtype.itemsize, "copy_large": LARGE}),
        "lsr1": {"begin": summary(seconds["lsr1 begin"]), "steps": [summary(seconds[f"lsr1 {k}"]) for k in range(memory + 1)]},
        "parts": _overlap(flat, config.baseline.bucket, seconds),
    }  # fmt: skip


def _objective(flat: FlatModel, loss: Loss, shape: tuple[int, ...], size: int, seed: int, outputs: int = CLASSES) -> DataObjective:
    """One subdomain with minibatches of ``size`` random images, in stored form as a data set of shards has them."""
    orders = plan_order(BATCHES * size, 1, batch=size, overlap=0.0, seed=0)
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randint(256, (BATCHES * size, *shape), generator=generator, dtype=torch.uint8)
    targets = torch.randint(outputs, (len(inputs),), generator=generator)
    one = range(1)
    scale, shift = torch.tensor(1 / 64), torch.tensor(-2.0)
    held = Samples(
        [r for r in needed_ranges(orders, one) if len(r)], inputs, targets, dtype=flat.dtype, device=CPU, scale=scale, shift=shift
    )
    objective = DataObjective(Evaluator(flat, loss, held), orders, one, BATCHES)
    objective.select(0, 0)
    objective.subdomains[0].cut(1)
    return objective


def _works(flat: FlatModel, objectives: Mapping[int, DataObjective], config: Config) -> dict[str, Work]:
    """All that is called as it is, by kind and size or name."""
    theta, grad = flat.initial(), torch.zeros(flat.n_params, dtype=flat.dtype)
    works: dict[str, Work] = {}
    for size, objective in objectives.items():
        works |= {f"{name} {size}": work for name, work in _evaluations(objective, size, theta, grad).items()}
    works |= {f"vector {name}": work for name, work in _passes(flat.n_params, flat.dtype).items()}
    for method in ALL_REDUCE:
        # A rate of nearly zero: theta must stay where numbers are normal, however often a step is made.
        works[f"optimizer {method}"] = optimizer(method, theta.clone(), grad, replace(config.baseline, lr=1e-12)).step
    exchange = Exchange(theta, objectives[1], SerialCommunicator(), Timers(), no_wishes)
    works["message scalars"] = lambda: (exchange.sum_(None, loss=[1.0]), exchange.get("loss"))
    return works


def _evaluations(objective: DataObjective, size: int, theta: Tensor, grad: Tensor) -> dict[str, Work]:
    subdomain, samples = objective.subdomains[0], objective.samples
    rows, count = torch.arange(size), iter(range(1, 2**62))
    fresh = _objective(objective._evaluator.flat, objective._evaluator.loss, tuple(samples.inputs.shape[1:]), size, 0, 1)

    def select() -> None:
        k = next(count)
        fresh.select(k // BATCHES, k % BATCHES)

    return {
        "gradient": lambda: subdomain.owned(theta, grad), "value": lambda: subdomain.owned(theta, None),
        "chunk": lambda: subdomain.chunk_gradient(0, theta, grad), "select": select, "take": lambda: samples.take(rows),
    }  # fmt: skip


def _passes(n: int, dtype: torch.dtype) -> dict[str, Work]:
    """The vector operations of the solvers, each as they call it."""
    generator = torch.Generator().manual_seed(0)
    a, b, c, d = (torch.randn(n, generator=generator, dtype=dtype) for _ in range(4))
    kept, weights = torch.randn(ROWS, n, generator=generator, dtype=dtype), torch.full((ROWS,), 1 / ROWS, dtype=dtype)
    large, into = (torch.zeros(LARGE // dtype.itemsize, dtype=dtype) for _ in range(2))
    tiny = torch.finfo(dtype).tiny

    def length() -> Tensor:
        return torch.dot(a, a).sqrt_().clamp_(min=tiny).reciprocal_()

    unit = length()
    return {
        "copy": lambda: c.copy_(a), "copy_large": lambda: into.copy_(large), "zero": c.zero_, "add": lambda: torch.add(a, b, out=c),
        "sub": lambda: torch.sub(a, b, out=c), "mul": lambda: torch.mul(a, 0.5, out=c), "dot": lambda: dot(a, b),
        "square": lambda: float(square(a)), "lerp": lambda: c.lerp_(a, 0.1), "length": length,
        "addcmul": lambda: torch.addcmul(b, a, unit, value=-1e-12, out=b), "combine": lambda: torch.mv(kept.T, weights, out=c),
        "checksum": lambda: (total(a), squares(a), total(b)), "reach": lambda: kernels.reach_(a, b, a, b, c, d),
    }  # fmt: skip


class _QuasiNewton:
    """L-SR1 from an empty memory to a full one on a convex quadratic, as a local solver calls it."""

    def __init__(self, n: int, memory: int, dtype: torch.dtype) -> None:
        generator = torch.Generator().manual_seed(0)
        self.model, self.memory = LSR1(n, memory, dtype, CPU), memory
        self.start, self.curvature = (torch.rand(n, generator=generator, dtype=dtype) + 0.1 for _ in range(2))
        self.new = torch.zeros(n, dtype=dtype)
        self.other = torch.zeros(LARGE // dtype.itemsize, dtype=dtype)

    def run(self, comm: Communicator) -> dict[str, float]:
        """Seconds of ``begin`` at full memory, and of a step with 0, 1, ... ``memory`` pairs; every rank calls.

        The memory is full after ``memory`` steps, and its spare slot lies among the pairs one step later: that one counts.
        """
        model, grad, new = self.model, self.start.clone(), self.new
        model.reset()
        radius = 0.2 * model.begin(grad)  # long enough for the steps to differ: pairs along one line are refused
        steps = []
        for _ in range(self.memory + 2):
            found = list[Any]()
            self.other.zero_()  # in a run a gradient is evaluated between any two of these, and no cache holds the memory
            proposed = clock(comm, lambda grad=grad, found=found: found.append(model.propose_(grad, radius)))  # type: ignore[misc]
            torch.addcmul(grad, self.curvature, found[0].vector, out=new)  # the quadratic's gradient at the trial point
            self.other.zero_()
            seen = clock(comm, lambda grad=grad, new=new, found=found: model.observe_(found[0].vector, grad, new))  # type: ignore[misc]
            model.accept()
            grad, new = new, grad
            steps.append(proposed + seen)
        self.other.zero_()
        begin = clock(comm, lambda: model.begin(grad))
        steps[self.memory] = steps.pop()
        return {"begin": begin, **{str(k): value for k, value in enumerate(steps)}}


class _Parts:
    """A gradient whose parts are announced while it is computed."""

    def __init__(self, flat: FlatModel, objective: DataObjective, nbytes: int) -> None:
        self.subdomain, self.nbytes = objective.subdomains[0], nbytes
        self.theta, self.grad = flat.initial(), torch.zeros(flat.n_params, dtype=flat.dtype)

    def run(self, comm: Communicator) -> list[float]:
        """Seconds from the start until each part is final, then until all is done, on the slowest rank; every rank calls."""
        comm.barrier()
        times, start = list[float](), perf_counter()
        self.subdomain.owned_in_parts(self.theta, self.grad, self.nbytes, lambda a, b: times.append(perf_counter() - start))
        return [max(column) for column in zip(*comm.gather([*times, perf_counter() - start]), strict=True)]


def _calls(comm: Communicator, work: Work) -> int:
    """How many calls fill a measurement, the same on all ranks."""
    clock(comm, work)
    return min(CALLS_MAX, max(1, math.ceil(BLOCK / clock(comm, work))))


def _by_size(kind: str, seconds: Seconds) -> list[dict[str, Any]]:
    return [{"samples": size, **summary(seconds[f"{kind} {size}"])} for size in SIZES]


def _by_name(kind: str, seconds: Seconds) -> dict[str, Any]:
    return {name.removeprefix(f"{kind} "): summary(values) for name, values in seconds.items() if name.startswith(f"{kind} ")}


def _rates(seconds: Seconds, lengths: Mapping[str, int]) -> dict[str, Any]:
    """Bytes read and written per second by a copy."""
    return {
        name: {"bytes": nbytes, "bytes_per_s": 2 * nbytes / float(np.median(seconds[f"vector {name}"]))} for name, nbytes in lengths.items()
    }


def _overlap(flat: FlatModel, bucket: int, seconds: Seconds) -> dict[str, Any]:
    """For each size, when each part is final and when the gradient is done, in seconds from its start."""
    lengths = [len(part) * flat.dtype.itemsize for part in ranges(flat.slots, bucket // flat.dtype.itemsize)]
    rows = [
        {"samples": size, "ready": [float(np.median(seconds[f"parts {size} {i}"])) for i in range(len(lengths))],
         **summary(seconds[f"parts {size} {len(lengths)}"])} for size in SIZES
    ]  # fmt: skip
    return {"bucket": bucket, "bytes": lengths, "rows": rows}


def lines(found: Mapping[str, Any]) -> list[str]:
    """The constants for people."""
    text = [f"n = {found['n_params']}", f"{'samples':>8} " + " ".join(f"{name:>12}" for name in ("gradient", "value", "chunk", "select"))]
    for row in zip(*(found[name] for name in ("gradient", "value", "chunk", "select")), strict=True):
        text.append(f"{row[0]['samples']:>8} " + " ".join(f"{1e6 * cell['median']:>9.1f} us" for cell in row))
    text += [_named("optimizer", found["optimizer"]), _named("vector", found["vector"]), _named("message", found["message"])]
    text.append("L-SR1, 0, 1, ... pairs: " + ", ".join(f"{1e6 * step['median']:.1f}" for step in found["lsr1"]["steps"]) + " us")
    return [*text, "copy: " + ", ".join(f"{c['bytes'] / 1e6:.3g} MB at {c['bytes_per_s'] / 1e9:.3g} GB/s" for c in found["copy"].values())]


def _named(kind: str, values: Mapping[str, Any]) -> str:
    return f"{kind}: " + ", ".join(f"{name} {1e6 * value['median']:.1f} us" for name, value in values.items())
