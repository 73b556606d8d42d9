"""Write one shard: two data sets in checksummed chunks, the data set's description as attributes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from apts_mpi.storage.files import file_hash, replacing
from apts_mpi.storage.manifest import Layout, Shard
from apts_mpi.storage.sources import Batch

CHUNK_BYTES = 2 << 20
# The oldest file format whose headers and chunk indices carry checksums too (HDF5 1.10).
_LIBVER = ("v110", "v110")


def chunk_samples(item_bytes: int, samples: int) -> int:
    """Whole samples in a chunk of about 2 MiB, at most all of them."""
    return max(1, min(samples, CHUNK_BYTES // item_bytes))


def write_shard(path: Path, layout: Layout, samples: int, attributes: dict[str, Any], batches: Iterator[Batch]) -> Shard:
    """Write ``samples`` samples to ``path``, which appears only when it is whole, and describe the file."""
    histogram = np.zeros(layout.classes, np.int64)
    with replacing(path) as temporary:
        with h5py.File(temporary, "w", libver=_LIBVER, locking=False) as file:
            for name, value in {**attributes, "name": path.name}.items():
                file.attrs[name] = np.bytes_(value.encode()) if isinstance(value, str) else value
            inputs = _create(file, "inputs", (samples, *layout.sample_shape), layout.input_dtype)
            targets = _create(file, "targets", (samples, *layout.target_shape), layout.target_dtype)
            done = 0
            for batch in batches:
                inputs[done : done + len(batch.inputs)] = batch.inputs
                targets[done : done + len(batch.targets)] = batch.targets
                done += len(batch.inputs)
                if layout.classes:
                    histogram += np.bincount(batch.targets.ravel(), minlength=layout.classes)
            assert done == samples
        size, sha = temporary.stat().st_size, file_hash(temporary)
    return Shard(path.name, path.name.split("-")[0], samples, size, sha, tuple(histogram.tolist()))


def _create(file: h5py.File, name: str, shape: tuple[int, ...], dtype: str) -> h5py.Dataset:
    row = math.prod(shape[1:]) * np.dtype(dtype).itemsize
    chunks = (chunk_samples(row, shape[0]), *shape[1:])
    return file.create_dataset(name, shape, dtype, chunks=chunks, fletcher32=True, track_times=False)
