"""Open one HDF5 shard only if it is exactly what the manifest says: refusals come before any value is read.

A shard may hold nothing but two chunked data sets with Fletcher-32 checksums. External links,
external storage, virtual data sets, soft links and other filters are followed by HDF5 without a
word; a small file can claim terabytes; a missing piece reads as zeros. None of that gets through.
"""

from __future__ import annotations

import math
from pathlib import Path

import h5py
import numpy as np
from h5py import h5a, h5d, h5l, h5z

from apts_mpi.regular import DataError, inside
from apts_mpi.storage.manifest import Manifest, Shard

CHUNK_LIMIT = 4 << 20  # bytes; a chunk is read whole, so its claimed size is memory
_ATTRIBUTE_LIMIT = 1 << 16
# What h5py raises for damaged files, by the place of the damage.
HDF5_ERRORS = (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError, MemoryError)


def open_shard(folder: Path, manifest: Manifest, shard: Shard) -> h5py.File:
    """The shard, open for reading without locks; DataError unless it is what the manifest says."""
    path = inside(folder, shard.name)
    if not path.is_file():
        raise DataError(f"{path}: shard is missing; copy it again, or make the data set again with `apts-mpi data convert`")
    if path.stat().st_size != shard.bytes:
        raise DataError(f"{path}: has {path.stat().st_size} bytes, the manifest says {shard.bytes}; copy it again or convert again")
    try:
        file = h5py.File(path, "r", locking=False, rdcc_nbytes=4 * CHUNK_LIMIT)
    except HDF5_ERRORS as error:
        raise DataError(f"{path}: HDF5 cannot open it ({error}); if no program is writing it, copy it again or convert again") from error
    try:
        _check_file(file, manifest, shard)
    except HDF5_ERRORS as error:
        file.close()
        raise DataError(f"{path}: refused, {error}; copy it again or convert again") from error
    return file


def _check_file(file: h5py.File, manifest: Manifest, shard: Shard) -> None:
    """Raise DataError unless the file holds our two data sets and our marks, and nothing else."""
    if len(file) != 2:
        raise DataError(f"it has {len(file)} objects, a shard has the two data sets inputs and targets")
    layout = manifest.layout
    _check_dataset(file, "inputs", (shard.samples, *layout.sample_shape), layout.input_dtype, shard.bytes)
    _check_dataset(file, "targets", (shard.samples, *layout.target_shape), layout.target_dtype, shard.bytes)
    for name, wanted in (("format", str(manifest.format)), ("plan", manifest.plan), ("name", shard.name)):
        if _text_attribute(file, name) != wanted:
            raise DataError(f"its attribute {name} is not {wanted!r}, so it belongs to another data set")


def _check_dataset(file: h5py.File, name: str, shape: tuple[int, ...], dtype: str, file_bytes: int) -> None:
    """Refuse every way in which ``name`` could be something else than plain checksummed chunks in this file."""
    if file.id.links.get_info(name.encode()).type != h5l.TYPE_HARD:
        raise DataError(f"{name} is a soft or external link")
    data = file[name]
    if not isinstance(data, h5py.Dataset):
        raise DataError(f"{name} is not a data set")
    plist = data.id.get_create_plist()
    if plist.get_layout() != h5d.CHUNKED or plist.get_external_count():
        raise DataError(f"{name} is virtual, external or not in chunks")
    if plist.get_nfilters() != 1 or plist.get_filter(0)[0] != h5z.FILTER_FLETCHER32:
        raise DataError(f"{name} must have the filter fletcher32 and no other")
    if data.dtype != np.dtype(dtype) or data.shape != shape:
        raise DataError(f"{name} is {data.dtype} {data.shape}, the manifest says {np.dtype(dtype)} {shape}")
    chunk, nbytes = math.prod(plist.get_chunk()) * data.dtype.itemsize, math.prod(shape) * data.dtype.itemsize
    if chunk > max(CHUNK_LIMIT, math.prod(shape[1:]) * data.dtype.itemsize):
        raise DataError(f"the chunks of {name} have {chunk} bytes")
    if not nbytes <= data.id.get_storage_size() <= file_bytes:
        raise DataError(f"{name} claims {nbytes} bytes and stores {data.id.get_storage_size()} in a file of {file_bytes}")


def _text_attribute(file: h5py.File, name: str) -> str:
    """A short fixed-length text attribute; everything else is refused unread."""
    attribute = h5a.open(file.id, name.encode())
    if attribute.get_storage_size() > _ATTRIBUTE_LIMIT or attribute.dtype.kind != "S" or attribute.shape != ():
        raise DataError(f"its attribute {name} is not a short text")
    value = np.empty((), attribute.dtype)
    attribute.read(value)
    return bytes(value[()]).decode("ascii", "replace")
