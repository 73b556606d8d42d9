"""Small objectives, and the same values from autograd on the chosen samples: no FlatModel, no pieces, no subdomains."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from apts_mpi.partition import block
from apts_mpi.problem.evaluator import Evaluator
from apts_mpi.problem.flat import FlatModel
from apts_mpi.problem.losses import resolve_loss
from apts_mpi.problem.objective import DataObjective, DataSubdomain, needed_ranges, plan
from apts_mpi.problem.order import Order
from apts_mpi.problem.samples import Samples

INPUTS, CLASSES = 5, 3
CPU = torch.device("cpu")


def network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(INPUTS, 4), nn.Tanh(), nn.Linear(4, CLASSES))


def data(samples: int) -> tuple[Tensor, Tensor]:
    """Stored as uint8, so that inputs are normalised when used."""
    rng = np.random.default_rng(11)
    return torch.from_numpy(rng.integers(0, 256, (samples, INPUTS), dtype=np.uint8)), torch.from_numpy(rng.integers(0, CLASSES, samples))


@dataclass
class Case:
    """One rank's objective, the orders of all subdomains, all samples, and a module that stays as it was."""

    objective: DataObjective
    orders: list[Order]
    inputs: Tensor  # normalised, float64
    targets: Tensor
    module: nn.Module

    def rows(self, index: int, epoch: int = 0, batch: int = 0) -> tuple[list[int], list[int]]:
        """Owned and borrowed samples of one of all subdomains."""
        owned = np.concatenate(self.orders[index].of_batch(epoch, batch)).tolist()
        following = self.orders[(index + 1) % len(self.orders)]
        halo = len(self.orders) > 1 and following.overlap > 0
        return owned, following.of_batch(epoch, batch)[0].tolist() if halo else []

    def direct(self, theta: Tensor, rows: list[int]) -> tuple[float, Tensor]:
        """Mean cross-entropy over ``rows``, some perhaps twice, and its gradient, by autograd in one go."""
        leaf, parts, offset = theta.clone().requires_grad_(), {}, 0
        for name, p in self.module.named_parameters():
            parts[name] = leaf[offset : offset + p.numel()].view(p.shape)
            offset += p.numel()
        outputs = functional_call(self.module, parts, self.inputs[rows])
        value = nn.functional.cross_entropy(outputs, self.targets[rows])
        return value.item(), torch.autograd.grad(value, leaf)[0]


def case(
    samples: int = 61, subdomains: int = 3, batch: int = 0, overlap: float = 0.1, ranks: int = 1, rank: int = 0, seed: int = 1
) -> Case:
    """In float64."""
    x, y = data(samples)
    scale, shift = torch.tensor(1 / 51.0, dtype=torch.float64), torch.tensor(-2.5, dtype=torch.float64)
    orders = plan(samples, subdomains, batch=batch, overlap=overlap, seed=seed)
    mine = block(subdomains, ranks, rank)
    ranges = [part for part in needed_ranges(orders, mine) if len(part)]
    held = [torch.cat([values[part.start : part.stop] for part in ranges]) for values in (x, y)]
    resident = Samples(ranges, held[0], held[1], dtype=torch.float64, device=CPU, scale=scale, shift=shift)
    module = network().double()
    flat = FlatModel(copy.deepcopy(module), torch.float64, CPU)
    objective = DataObjective(Evaluator(flat, resolve_loss("cross_entropy"), resident), orders, mine, orders[0].batches)
    return Case(objective, orders, x.double() / 51.0 - 2.5, y, module)


def point(case: Case, seed: int = 5) -> Tensor:
    """Some theta."""
    return torch.from_numpy(0.5 * np.random.default_rng(seed).standard_normal(case.objective.n_params))


def used(subdomain: DataSubdomain) -> tuple[Tensor, Tensor]:
    """Normalised inputs and targets of the current samples, the owned first."""
    return subdomain._share.take(range(subdomain.size + subdomain.borrowed))


def near(a: Tensor, b: Tensor, tolerance: float = 1e-12) -> bool:
    """Whether two vectors agree relative to their length."""
    return bool(torch.linalg.vector_norm(a - b) <= tolerance * torch.linalg.vector_norm(b))
