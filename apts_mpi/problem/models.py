"""Networks by name; any other by ``package.module:factory``."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import nn

from apts_mpi.config import ModelConfig
from apts_mpi.problem.losses import import_path
from apts_mpi.problem.poisson import poisson, tanh
from apts_mpi.problem.resnet import resnet
from apts_mpi.problem.transformer import transformer

Factory = Callable[[tuple[int, ...], int], nn.Module]


def mlp(sample_shape: tuple[int, ...], outputs: int, widths: Sequence[int], sigmoid: bool = False) -> nn.Module:
    """Flatten, then Linear + ReLU for each width, then Linear; ``sigmoid`` adds the paper's squashed head."""
    sizes = [math.prod(sample_shape), *widths]
    layers: list[nn.Module] = [nn.Flatten()]
    for inside, outside in zip(sizes, sizes[1:], strict=False):
        layers += [nn.Linear(inside, outside), nn.ReLU()]
    layers.append(nn.Linear(sizes[-1], outputs))
    return nn.Sequential(*layers, *([nn.Sigmoid()] if sigmoid else []))


def cnn(sample_shape: tuple[int, ...], outputs: int) -> nn.Module:
    """Two 3x3 convolutions (16 and 32 channels), each with ReLU and 2x2 pooling, and a linear head."""
    if len(sample_shape) != 3:
        raise ValueError(f"model.name = 'cnn' needs samples of shape (channels, height, width), got {sample_shape}")
    channels, height, width = sample_shape
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * (height // 4) * (width // 4), outputs),
    )  # fmt: skip


OF_WIDTHS: dict[str, Callable[[tuple[int, ...], int, Sequence[int]], nn.Module]] = {"mlp": mlp, "tanh": tanh, "poisson": poisson}
BY_NAME: dict[str, Factory] = {
    "cnn": cnn,
    "resnet": resnet,
    "transformer": transformer,
    "paper-mnist": lambda shape, outputs: mlp(shape, outputs, (512, 256)),
    "paper-mnist-sigmoid": lambda shape, outputs: mlp(shape, outputs, (512, 256), sigmoid=True),
    "paper-cifar10": lambda shape, outputs: mlp(shape, outputs, (512, 512)),
}


def build_model(config: ModelConfig, sample_shape: tuple[int, ...], outputs: int, seed: int) -> nn.Module:
    """The configured network with torch's default initialisation, the same for the same seed.

    A factory path is called as ``factory(sample_shape, outputs)``. Raises ValueError for an unknown name.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if config.name in OF_WIDTHS:
            return OF_WIDTHS[config.name](sample_shape, outputs, config.widths)
        factory = BY_NAME.get(config.name) or import_path(config.name, "model.name", [*OF_WIDTHS, *BY_NAME])
        try:
            model = factory(sample_shape, outputs)
        except (RuntimeError, TypeError, LookupError, AttributeError) as error:
            raise ValueError(f"model.name = {config.name!r} failed as factory({sample_shape}, {outputs}): {error}") from error
    if not isinstance(model, nn.Module):
        raise ValueError(f"model.name = {config.name!r} must return a torch.nn.Module, got {type(model).__name__}")
    return model
