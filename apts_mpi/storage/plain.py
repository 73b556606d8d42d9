"""Disk errors that name the file, and HDF5 files that hold nothing but plain data.

HDF5 follows links into other files without a word, a small file can claim terabytes, and what
was never written reads as zeros. ``check_plain`` refuses all that before any value is read, so
that reading every dataset takes no more memory than the file has bytes.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5a, h5d, h5l, h5o, h5t, h5z

from apts_mpi.regular import AGAIN, DataError, open_regular
from apts_mpi.regular import naming as naming
from apts_mpi.storage.files import replacing
from apts_mpi.storage.guard import HDF5_ERRORS

MEMBERS_MAX = 20_000  # groups and datasets in one file
DEPTH_MAX = 16
ATTRIBUTES_MAX = 64  # of one object
ATTRIBUTE_BYTES = 1 << 16
FILE_BYTES = 1 << 34  # of a file whose size nobody knows beforehand: 16 GiB
RANKS_MAX = 8  # dimensions
FILTERS = (h5z.FILTER_FLETCHER32, h5z.FILTER_SHUFFLE)  # neither makes values larger than what is stored
CLASSES = (h5t.INTEGER, h5t.FLOAT, h5t.STRING)


def write_atomic(path: Path, data: bytes | memoryview) -> None:
    """Replace ``path`` by ``data`` as a whole or not at all; OSError names ``path``."""
    with naming(path), replacing(path) as temporary:
        temporary.write_bytes(data)


@contextmanager
def open_plain(path: Path, limit: int = FILE_BYTES) -> Iterator[h5py.File]:
    """An HDF5 file for reading after ``check_plain``, without a lock; OSError or DataError name the file, also when reading fails.

    Inside, raise DataError alone: any other ValueError is taken for one of HDF5.
    """
    with open_regular(path, limit) as handle, reading(path, handle) as file:
        yield file


@contextmanager
def reading(path: Path, handle: BufferedReader) -> Iterator[h5py.File]:
    """The HDF5 file behind ``handle`` after ``check_plain``; whatever HDF5 finds wrong with it is a DataError that names ``path``."""
    try:
        # HDF5 reads through this very descriptor: whatever the path leads to meanwhile, it is the file that was looked at.
        with h5py.File(handle, "r") as file:
            check_plain(file, path, os.fstat(handle.fileno()).st_size)
            yield file
    except DataError as error:
        if str(path) in str(error):
            raise
        raise DataError(f"{path}: {error}") from error
    except HDF5_ERRORS as error:
        if isinstance(error, OSError) and error.errno:
            raise
        raise DataError(f"{path}: cannot be read as HDF5, it is damaged or no such file ({error!s:.300}); {AGAIN}") from error


def check_plain(file: h5py.File, path: Path, left: int) -> None:
    """Raise DataError unless the file of ``left`` bytes is a tree of plain numbers and texts, all stored in it; reads no data."""
    seen = {h5o.get_info(file.id).addr}
    _check_attributes(file, f"{path}: /")
    waiting: list[tuple[h5py.Group, str, int]] = [(file, f"{path}: ", 1)]
    while waiting:
        group, prefix, depth = waiting.pop()
        for name in _names(group, MEMBERS_MAX - len(seen), path):
            where = f"{prefix}/{name.decode(errors='replace')}"
            if group.id.links.get_info(name).type != h5l.TYPE_HARD:
                raise DataError(f"{where} is a soft or external link; links are refused")
            member = group[name]
            address = h5o.get_info(member.id).addr
            if address in seen:
                raise DataError(f"{where} is a second name of an object; links are refused")
            seen.add(address)
            if isinstance(member, h5py.Dataset):
                left -= _checked_bytes(member, where, left)
            elif isinstance(member, h5py.Group) and depth < DEPTH_MAX:
                waiting.append((member, where, depth + 1))
            else:
                raise DataError(f"{where} is neither a dataset nor a group at most {DEPTH_MAX} deep")
            _check_attributes(member, where)


def _names(group: h5py.Group, room: int, path: Path) -> list[bytes]:
    """The links of a group: first how many it claims, then no more than these."""
    found: list[bytes] = []
    claimed = len(group)
    if claimed <= room:
        group.id.links.iterate(lambda name: found.append(name) if len(found) <= room else True)
    if claimed > room or len(found) > room:
        raise DataError(f"{path} has more than {MEMBERS_MAX} members")
    return found


def _checked_bytes(dataset: h5py.Dataset, where: str, left: int) -> int:
    """The size of a dataset; DataError if it is not plain, or larger than the ``left`` bytes of the file."""
    plist, kind, shape = dataset.id.get_create_plist(), dataset.id.get_type(), dataset.id.shape
    layout = plist.get_layout()
    if layout == h5d.VIRTUAL:
        raise DataError(f"{where} is a virtual dataset; its data would come from elsewhere")
    if plist.get_external_count():
        raise DataError(f"{where} keeps its data in another file; refused")
    if any(plist.get_filter(index)[0] not in FILTERS for index in range(plist.get_nfilters())):
        raise DataError(f"{where} is compressed or has a filter other than fletcher32 and shuffle; refused")
    if kind.get_class() not in CLASSES or (isinstance(kind, h5t.TypeStringID) and kind.is_variable_str()):
        raise DataError(f"{where} holds neither numbers nor texts of a fixed length; other types are refused")
    if shape is None or len(shape) > RANKS_MAX:
        raise DataError(f"{where} has no shape, or more than {RANKS_MAX} dimensions")
    size: int = kind.get_size() * math.prod(shape)
    chunk = kind.get_size() * math.prod(plist.get_chunk()) if layout == h5d.CHUNKED else 0
    if max(size, chunk) > left:
        raise DataError(f"{where} claims {max(size, chunk)} bytes in a file that has {left} for it")
    if dataset.id.get_storage_size() < size:  # what was never written reads as zeros
        raise DataError(f"{where} claims {size} bytes and stores {dataset.id.get_storage_size()}")
    return size


def _check_attributes(member: h5py.HLObject, where: str) -> None:
    count = h5a.get_num_attrs(member.id)
    if count > ATTRIBUTES_MAX:
        raise DataError(f"{where} has {count} attributes, {ATTRIBUTES_MAX} are allowed")
    sizes = [h5a.open(member.id, index=index).get_storage_size() for index in range(count)]
    if max(sizes, default=0) > ATTRIBUTE_BYTES:
        raise DataError(f"{where} has an attribute of {max(sizes)} bytes, {ATTRIBUTE_BYTES} are allowed")


def attribute(member: h5py.HLObject, name: str) -> str | int | float:
    """One attribute that is a number or a short text; DataError for every other kind, which stays unread."""
    where = f"attribute {name} of {member.name}"
    if not h5a.exists(member.id, name.encode()):
        raise DataError(f"{where} is missing")
    found = h5a.open(member.id, name.encode())
    if found.shape != () or found.get_type().get_class() not in CLASSES or found.get_storage_size() > ATTRIBUTE_BYTES:
        raise DataError(f"{where} is neither a number nor a short text")
    value: Any = member.attrs[name]
    plain: str | int | float = value if isinstance(value, str) else np.asarray(value).item()
    return plain.decode("utf-8", "replace") if isinstance(plain, bytes) else plain


def values(group: h5py.Group, name: str) -> np.ndarray[Any, Any]:
    """A dataset as an array in native byte order; DataError if there is none of this name."""
    member = group.get(name)
    if not isinstance(member, h5py.Dataset):
        raise DataError(f"{group.name.rstrip('/')}/{name} is missing")
    found = np.asarray(member[()])
    return found.astype(found.dtype.newbyteorder("="), copy=False)
