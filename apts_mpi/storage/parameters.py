"""Final parameters by name, as HDF5 that any reader opens."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from apts_mpi.rundir import PARAMETERS
from apts_mpi.storage.plain import open_plain, write_atomic

FORMAT = "apts-mpi parameters"


def digest(theta: NDArray[Any]) -> str:
    """SHA-256 of the little-endian bytes of ``theta`` (n,)."""
    plain = np.ascontiguousarray(theta, theta.dtype.newbyteorder("<"))
    return hashlib.sha256(plain.view(np.uint8).data).hexdigest()


def write_parameters(path: Path, parameters: Mapping[str, NDArray[Any]]) -> None:
    """One dataset per named parameter, with its shape; OSError names the file."""
    image = io.BytesIO()
    with h5py.File(image, "w") as file:
        total = sum(array.size for array in parameters.values())
        file.attrs.update({"format": FORMAT, "format_version": 1, "n_params": total})
        for index, (name, array) in enumerate(parameters.items()):
            entry = file.create_dataset(name.replace("/", "|"), data=array)  # a slash would make a group
            entry.attrs.update({"name": name, "index": index})
    write_atomic(path, image.getbuffer())


def read_parameters(path: str | Path) -> dict[str, NDArray[Any]]:
    """The named parameters of a run (its directory or its parameters.h5), in the model's order; ValueError names the file."""
    file_path = Path(path) / PARAMETERS if Path(path).is_dir() else Path(path)
    with open_plain(file_path) as file:
        if file.attrs.get("format") != FORMAT:
            raise ValueError(f"{file_path} holds no parameters of apts-mpi")
        entries = sorted(file.values(), key=lambda entry: int(entry.attrs["index"]))
        return {str(entry.attrs["name"]): entry[()] for entry in entries}
