"""What the parameters that a run ended with are worth: loss on the test set, and the error of u where the answer is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from apts_mpi import settings
from apts_mpi.assembly import from_shards
from apts_mpi.config import Config
from apts_mpi.problem.flat import FlatModel
from apts_mpi.problem.losses import resolve_loss
from apts_mpi.problem.models import build_model
from apts_mpi.problem.samples import Samples
from apts_mpi.problem.scoring import score
from apts_mpi.rundir import CONFIG, read_run
from apts_mpi.storage.parameters import read_parameters
from apts_mpi.storage.poisson import answer
from apts_mpi.storage.shards import Dataset, open_dataset

GRID = 101  # points a side, the border with them
CPU = torch.device("cpu")


def worth(folder: Path) -> dict[str, float]:
    """``test_loss`` and, for Poisson's equation and its fit, ``error`` = |u - answer| / |answer| in the 2-norm over a grid.

    Empty if the run has not finished, or its data set is not there or another one.
    """
    try:
        config = settings.resolve(settings.from_file(folder / CONFIG)).config
        data, parameters = open_dataset(config.data.path), read_parameters(folder)
        if read_run(folder).provenance["data_fingerprint"] != data.fingerprint:
            return {}
    except (OSError, ValueError):
        return {}
    module = build_model(config.model, data.split("train").sample_shape, _outputs(data), 0).to(_dtype(config))
    module.load_state_dict({name: torch.from_numpy(values) for name, values in parameters.items()})
    found = {"test_loss": _test_loss(module, config, data)}
    return found | ({"error": error(module)} if data.manifest.kind == "poisson" else {})


def error(module: nn.Module) -> float:
    """The relative error of u on the grid."""
    side = np.linspace(0, 1, GRID)
    points = np.stack(np.meshgrid(side, side, indexing="ij"), -1).reshape(-1, 2)
    with torch.no_grad():
        u = getattr(module, "solution", module)(torch.from_numpy(points).to(next(module.parameters()).dtype))
    wanted = answer(points)
    return float(np.linalg.norm(u.double().numpy().ravel() - wanted) / np.linalg.norm(wanted))


def _dtype(config: Config) -> torch.dtype:
    return torch.float64 if config.model.dtype == "float64" else torch.float32


def _outputs(data: Dataset) -> int:
    split = data.split("train")
    return split.classes or int(np.prod(split.target_shape))


def _test_loss(module: nn.Module, config: Config, data: Dataset) -> float:
    """Mean over the test set."""
    made = from_shards(data.split("train"), data.split("test"), config.data.normalize, 0, data.fingerprint, "")
    inputs, targets = map(torch.from_numpy, data.split("test").read(0, data.split("test").samples))
    samples = Samples(
        [range(len(inputs))], inputs, targets, dtype=_dtype(config), device=CPU, scale=made.scale, shift=made.shift, tokens=made.tokens
    )
    flat = FlatModel(module, _dtype(config), CPU)
    total, _, count = score(flat, resolve_loss(config.model.loss), samples, flat.initial())
    return total / count
