"""Every reader of the package as a function of a path: it reads all there is and gives a digest of the values."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from apts_mpi.storage import checkpoint
from apts_mpi.storage.parameters import read_parameters
from apts_mpi.storage.plain import values
from apts_mpi.storage.sealed import open_sealed
from apts_mpi.storage.shards import open_dataset
from apts_mpi.storage.verify import verify


def digest(parts: Iterable[Any]) -> str:
    """One hash of arrays, texts and numbers, their types and shapes."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            native = part.astype(part.dtype.newbyteorder("="))
            total.update(f"{native.dtype} {native.shape}".encode() + native.tobytes())
        else:
            total.update(repr(part).encode())
    return total.hexdigest()


def dataset(path: Path) -> str:
    """A whole data set, values and constants."""
    found = open_dataset(path)
    parts: list[Any] = []
    for name in ("train", "test"):
        split = found.split(name)
        parts += [*split.read(0, split.samples), split.normalisation("channel"), split.normalisation("scalar"), split.classes]
    return digest(parts)


def verified(path: Path) -> str:
    """What ``apts-mpi data verify`` says; its findings as an error, its silence as the values."""
    found = verify(path)
    if found.problems:
        raise ValueError("; ".join(found.problems))
    return dataset(path)


def parameters(path: Path) -> str:
    return digest(part for pair in read_parameters(path).items() for part in pair)


def checkpoint_1(path: Path) -> str:
    """The first checkpoint in a folder."""
    found = checkpoint.read(path, 1)
    own = [pair for arrays in found.own for pair in sorted(arrays.items())]
    return digest([found.facts, found.theta, found.records, *(part for pair in (*sorted(found.shared.items()), *own) for part in pair)])


def sealed(path: Path) -> str:
    """Whatever plain values a sealed file holds."""
    with open_sealed(path) as file:
        return digest(_everything(file))


def _everything(group: h5py.Group) -> Iterable[Any]:
    for name, member in group.items():
        yield name
        yield from _everything(member) if isinstance(member, h5py.Group) else [values(group, name)]


READERS: dict[str, Callable[[Path], str]] = {"dataset": dataset, "verified": verified, "parameters": parameters, "sealed": sealed}
READERS["checkpoint"] = checkpoint_1
