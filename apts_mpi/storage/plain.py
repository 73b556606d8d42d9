"""Disk errors that name the file, and HDF5 files that hold nothing but plain data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py

from apts_mpi.storage.files import replacing

MEMBERS_MAX = 100_000  # groups and datasets in one file
DEPTH_MAX = 16


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Make every OSError inside name ``path``, the file that a person knows."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def write_atomic(path: Path, data: bytes | memoryview) -> None:
    """Replace ``path`` by ``data`` as a whole or not at all; OSError names ``path``."""
    with naming(path), replacing(path) as temporary:
        temporary.write_bytes(data)


@contextmanager
def open_plain(path: Path) -> Iterator[h5py.File]:
    """An HDF5 file for reading after ``check_plain``; OSError or ValueError name the file."""
    with naming(path), h5py.File(path, "r", locking=False) as file:
        check_plain(file, path)
        yield file


def check_plain(file: h5py.File, path: Path) -> None:
    """Refuse links out of the file, external storage, virtual and oversized datasets, loops and crowds; reads no data."""
    limit = path.stat().st_size
    seen: set[int] = set()
    waiting: list[tuple[h5py.Group, int]] = [(file, 0)]
    while waiting:
        group, depth = waiting.pop()
        for name in group:
            where = f"{path}: {group.name.rstrip('/')}/{name}"
            if group.get(name, getlink=True, getclass=True) is not h5py.HardLink:
                raise ValueError(f"{where} is a soft or external link; links are refused")
            member = group[name]
            address = h5py.h5o.get_info(member.id).addr
            if address in seen:
                raise ValueError(f"{where} is a second name of an object; links are refused")
            seen.add(address)
            if isinstance(member, h5py.Dataset):
                _check_dataset(member, where, limit)
            elif isinstance(member, h5py.Group) and depth < DEPTH_MAX:
                waiting.append((member, depth + 1))
            else:
                raise ValueError(f"{where} is neither a dataset nor a group at most {DEPTH_MAX} deep")
            if len(seen) > MEMBERS_MAX:
                raise ValueError(f"{path} has more than {MEMBERS_MAX} members")


def _check_dataset(dataset: h5py.Dataset, where: str, limit: int) -> None:
    if dataset.is_virtual:
        raise ValueError(f"{where} is a virtual dataset; its data would come from elsewhere")
    if dataset.external:
        raise ValueError(f"{where} keeps its data in another file; refused")
    if dataset.nbytes > limit:
        raise ValueError(f"{where} claims {dataset.nbytes} bytes in a file of {limit}")
