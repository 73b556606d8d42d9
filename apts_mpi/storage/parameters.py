"""Final parameters by name, as HDF5 that any reader opens."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from apts_mpi.regular import DataError, inside
from apts_mpi.rundir import PARAMETERS
from apts_mpi.storage.plain import attribute, open_plain, values
from apts_mpi.storage.sealed import is_sealed, new_file, open_sealed, write_sealed

FORMAT = "apts-mpi parameters"
FORMAT_VERSION = 2  # 1 had no seal


def digest(theta: NDArray[Any]) -> str:
    """SHA-256 of the little-endian bytes of ``theta`` (n,)."""
    plain = np.ascontiguousarray(theta, theta.dtype.newbyteorder("<"))
    return hashlib.sha256(plain.view(np.uint8).data).hexdigest()


def write_parameters(path: Path, parameters: Mapping[str, NDArray[Any]]) -> None:
    """One dataset per named parameter, with its shape, in a sealed file; OSError names the file."""
    image = io.BytesIO()
    with new_file(image) as file:
        total = sum(array.size for array in parameters.values())
        file.attrs.update({"format": FORMAT, "format_version": FORMAT_VERSION, "n_params": total})
        for index, (name, array) in enumerate(parameters.items()):
            entry = file.create_dataset(name.replace("/", "|"), data=array)  # a slash would make a group
            entry.attrs.update({"name": name, "index": index})
    write_sealed(path, image)


def read_parameters(path: str | Path) -> dict[str, NDArray[Any]]:
    """The named parameters of a run (its directory or its parameters.h5), in the model's order; OSError or DataError name the file.

    Refused are files that are damaged, hold anything but plain numbers, or hold nan or inf.
    """
    file_path = inside(Path(path), PARAMETERS) if Path(path).is_dir() else Path(path)
    sealed = is_sealed(file_path)
    with _opened(file_path, sealed) as file:
        if "format" not in file.attrs or attribute(file, "format") != FORMAT:
            raise DataError(f"{file_path} holds no parameters of apts-mpi")
        version = attribute(file, "format_version")
        if version != (FORMAT_VERSION if sealed else 1):
            seal = "with" if sealed else "without"
            raise DataError(f"{file_path} {seal} a seal has format version {version}, this is for 2 with and 1 without; write it again")
        found = _named(file, file_path)
        if attribute(file, "n_params") != sum(array.size for array in found.values()):
            raise DataError(f"{file_path} does not hold the {attribute(file, 'n_params')} numbers it speaks of; copy it again")
        return found


def _opened(path: Path, sealed: bool) -> AbstractContextManager[h5py.File]:
    return open_sealed(path) if sealed else open_plain(path)


def _named(file: h5py.File, path: Path) -> dict[str, NDArray[Any]]:
    order = {int(attribute(entry, "index")): entry for entry in file.values()}
    if sorted(order) != list(range(len(file))):
        raise DataError(f"{path} does not say in which order its parameters stand; copy it again")
    found: dict[str, NDArray[Any]] = {}
    for index in range(len(order)):
        name = str(attribute(order[index], "name"))
        array = values(file, order[index].name)
        if array.dtype.kind not in "fiu" or not np.isfinite(array).all():
            raise DataError(f"{path}: parameter {name} holds nan, inf or no numbers: the run went wrong, take an earlier one")
        found[name] = array
    if len(found) != len(order):
        raise DataError(f"{path} has two parameters of one name; copy it again")
    return found
