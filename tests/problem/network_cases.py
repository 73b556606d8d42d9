"""The larger networks of the package with a few samples each, and the loss that goes with them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from apts_mpi.config import ModelConfig
from apts_mpi.problem.flat import FlatModel
from apts_mpi.problem.losses import Loss, resolve_loss
from apts_mpi.problem.models import build_model
from apts_mpi.problem.samples import Samples

CPU = torch.device("cpu")
CHARACTERS = 11
SHAPES = {"resnet": (3, 12, 10), "transformer": (9,), "tanh": (2,), "poisson": (2,), "cnn": (3, 8, 8)}
NAMES = ("resnet", "transformer", "tanh", "poisson")


@dataclass
class Case:
    """A network, samples for it, and its loss."""

    module: nn.Module
    inputs: Tensor
    targets: Tensor
    loss: Loss

    @property
    def samples(self) -> Samples:
        dtype = next(self.module.parameters()).dtype
        tokens, count = not self.inputs.dtype.is_floating_point, len(self.inputs)
        return Samples([range(count)], self.inputs, self.targets, dtype=dtype, device=CPU, tokens=tokens)


def case(name: str, count: int = 6, dtype: torch.dtype = torch.float64, seed: int = 0) -> Case:
    """Random samples: images with labels, windows with the windows after them, points with numbers."""
    shape, generator = SHAPES[name], torch.Generator().manual_seed(seed + 1)
    outputs = {"transformer": CHARACTERS, "tanh": 1, "poisson": 1}.get(name, 5)
    module = build_model(ModelConfig(name=name, widths=(7, 5)), shape, outputs, seed).to(dtype)
    if name == "transformer":
        text = torch.randint(CHARACTERS, (count, shape[0] + 1), generator=generator)
        return Case(module, text[:, :-1], text[:, 1:], resolve_loss("cross_entropy"))
    inputs = torch.rand((count, *shape), generator=generator, dtype=dtype)
    if name in ("tanh", "poisson"):
        return Case(module, inputs, torch.rand(count, generator=generator, dtype=dtype), resolve_loss("mse"))
    return Case(module, inputs, torch.randint(outputs, (count,), generator=generator), resolve_loss("cross_entropy"))


def flat_of(this: Case) -> FlatModel:
    return FlatModel(this.module, next(this.module.parameters()).dtype, CPU)
