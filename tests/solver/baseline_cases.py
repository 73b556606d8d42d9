"""Steppers of any method on a small problem, and what they must do, in NumPy: one process plays all subdomains."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from apts_cases import CPU, data, network

from apts_mpi.config import Config
from apts_mpi.contracts import Communicator
from apts_mpi.parallel.serial import SerialCommunicator
from apts_mpi.partition import block
from apts_mpi.presets import preset
from apts_mpi.problem.evaluator import Evaluator
from apts_mpi.problem.flat import FlatModel
from apts_mpi.problem.losses import resolve_loss
from apts_mpi.problem.objective import DataObjective, needed_ranges, plan
from apts_mpi.problem.order import Order
from apts_mpi.problem.samples import Samples
from apts_mpi.solver.build import Stepper, build_stepper
from apts_mpi.timing import Timers

sys.path.append(str(Path(__file__).parents[1] / "reference"))
from dense_apts import Array, Network  # noqa: E402


def settings(method: str, subdomains: int = 2, **sections: Any) -> Config:
    return preset("default", method, solver={"subdomains": subdomains}, **sections)


def stepper(
    config: Config, samples: int = 60, batch: int = 20, comm: Communicator | None = None, dtype: torch.dtype = torch.float64,
) -> tuple[Stepper, DataObjective, list[Order]]:  # fmt: skip
    """The method on this rank's share, and the orders of all subdomains."""
    comm, subdomains = comm or SerialCommunicator(), config.solver.subdomains
    x, y = data(samples)
    orders = plan(samples, subdomains, batch=batch, overlap=0.0, seed=1)
    mine = block(subdomains, comm.size, comm.rank)
    ranges = [part for part in needed_ranges(orders, mine) if len(part)]
    inputs, targets = (torch.cat([values[r.start : r.stop] for r in ranges]) for values in (x.to(dtype), y))
    held = Samples(ranges, inputs, targets, dtype=dtype, device=CPU)
    flat = FlatModel(network(), dtype, CPU)
    objective = DataObjective(Evaluator(flat, resolve_loss("cross_entropy"), held), orders, mine, orders[0].batches)
    return build_stepper(config, flat.initial(), objective, comm, Timers(), subdomains), objective, orders


class Rule:
    """An update rule on a vector, from its textbook formula; holds its own memory."""

    def __init__(self, config: Config, method: str) -> None:
        self.c, self.method, self.t = config.baseline, method, 0
        self.v: Array | None = None
        self.m = self.s = 0.0

    def __call__(self, theta: Array, g: Array, lr: float) -> Array:
        c = self.c
        if self.method == "adamw":
            theta = theta - lr * c.weight_decay * theta
        else:
            g = g + c.weight_decay * theta
        if self.method in ("adam", "adamw"):
            self.t += 1
            self.m, self.s = 0.9 * self.m + 0.1 * g, 0.999 * self.s + 0.001 * g * g
            return theta - lr * (self.m / (1 - 0.9**self.t)) / (np.sqrt(self.s / (1 - 0.999**self.t)) + 1e-8)
        self.v = g if self.v is None else c.momentum * self.v + g
        return theta - lr * (g + c.momentum * self.v if c.nesterov else self.v)


def rows_of(orders: list[Order], epoch: int, batch: int) -> list[list[int]]:
    """The samples of every subdomain in a minibatch."""
    return [np.concatenate(order.of_batch(epoch, batch)).tolist() for order in orders]


def mean(net: Network, theta: Array, rows: list[int]) -> tuple[float, Array]:
    value, grad = net.sums(theta, rows)
    return value / len(rows), grad / len(rows)
