"""Small problems on which the solver is compared with its slow twin."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

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
from apts_mpi.solver.apts import APTS
from apts_mpi.timing import Timers

INPUTS, HIDDEN, CLASSES = 5, 4, 3
CPU = torch.device("cpu")


def data(samples: int, seed: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Gaussian inputs, labels from a random linear rule."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((samples, INPUTS))
    labels = (x @ rng.standard_normal((INPUTS, CLASSES)) + 0.5 * rng.standard_normal((samples, CLASSES))).argmax(1)
    return torch.from_numpy(x), torch.from_numpy(labels)


def network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(INPUTS, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, CLASSES))


def solver(
    config: Config, subdomains: int, samples: int = 60, batch: int = 0, overlap: float = 0.1, comm: Communicator | None = None,
    dtype: torch.dtype = torch.float64, tensors: tuple[torch.Tensor, torch.Tensor] | None = None,
    module: nn.Module | None = None,
) -> tuple[APTS, list[Order]]:  # fmt: skip
    """An APTS object on the rank's share of a small problem, and the orders of all subdomains."""
    comm = comm or SerialCommunicator()
    x, y = tensors or data(samples)
    orders = plan(len(x), subdomains, batch=batch, overlap=overlap, seed=1)
    mine = block(subdomains, comm.size, comm.rank)
    ranges = [part for part in needed_ranges(orders, mine) if len(part)]
    inputs, targets = (torch.cat([values[r.start : r.stop] for r in ranges]) for values in (x, y))
    held = Samples(ranges, inputs.to(dtype), targets, dtype=dtype, device=CPU)
    flat = FlatModel(module or network(), dtype, CPU)
    objective = DataObjective(Evaluator(flat, resolve_loss("cross_entropy"), held), orders, mine, orders[0].batches)
    return APTS(flat.initial(), objective, comm, Timers(), config, subdomains), orders


def cut(orders: list[Order], epoch: int = 0, batch: int = 0) -> list[tuple[list[int], list[int]]]:
    """Owned and borrowed samples of every subdomain."""
    parts = [order.of_batch(epoch, batch) for order in orders]
    has_halo = len(orders) > 1 and orders[0].overlap > 0
    return [
        (np.concatenate(part).tolist(), parts[(i + 1) % len(parts)][0].tolist() if has_halo else []) for i, part in enumerate(parts)
    ]


def settings(name: str = "lsr1", **sections: Any) -> Config:
    return preset(name, **sections)
