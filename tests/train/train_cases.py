"""Small tasks for whole training runs, and a data set of shards made of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from apts_mpi.config import Config
from apts_mpi.presets import preset
from apts_mpi.storage.convert import convert

INPUTS, CLASSES = 6, 3
QUIET = {"monitor": "none", "device": "cpu"}


def task(samples: int = 240, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Gaussian inputs with labels from one fixed linear rule, float32 and int64."""
    rule = np.random.default_rng(99).standard_normal((INPUTS, CLASSES))
    x = np.random.default_rng(seed).standard_normal((samples, INPUTS))
    return torch.from_numpy(x.astype(np.float32)), torch.from_numpy((x @ rule).argmax(1))


def network(seed: int = 0, hidden: int = 8, outputs: int = CLASSES) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(INPUTS, hidden), nn.Tanh(), nn.Linear(hidden, outputs))


def settings(name: str = "lsr1", **sections: dict[str, Any]) -> Config:
    """A config that prints nothing."""
    return preset(name, **{**sections, "run": {**QUIET, **sections.get("run", {})}})


def shards(folder: Path, samples: int = 120, count: int = 3) -> Path:
    """Small images in classes that a network can tell apart: class c is bright in row c."""
    rng = np.random.default_rng(1)
    arrays = {}
    for split, size in (("train", samples), ("test", 30)):
        labels = rng.integers(0, CLASSES, size)
        images = rng.integers(0, 100, (size, 1, CLASSES, 4), dtype=np.uint8)
        images[np.arange(size), 0, labels] += 150
        arrays |= {f"x_{split}": images, f"y_{split}": labels}
    np.savez(folder / "raw.npz", **arrays)
    convert("npz", folder / "raw.npz", folder / "set", shards=count)
    return folder / "set"
