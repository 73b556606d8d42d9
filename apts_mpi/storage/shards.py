"""Read a data set of HDF5 shards: any range of samples, across file borders, each file checked before it is read."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from apts_mpi.storage.files import DataError, file_hash
from apts_mpi.storage.guard import HDF5_ERRORS, open_shard
from apts_mpi.storage.manifest import Manifest, load_manifest


@dataclass(frozen=True)
class Normalisation:
    """normalised = (x / scale - mean) / std; mean and std have one entry, or one per channel (axis 0 of a sample)."""

    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass
class _Handle:
    """The one file a split keeps open, and the process that opened it."""

    name: str = ""
    pid: int = 0
    file: h5py.File | None = None


class Split:
    """The samples 0..samples-1 of "train" or "test"; nothing is opened before the first read."""

    def __init__(self, folder: Path, manifest: Manifest, name: str) -> None:
        layout, statistics = manifest.layout, manifest.statistics
        self.name = name
        self.samples = manifest.samples(name)
        self.sample_shape = layout.sample_shape
        self.target_shape = layout.target_shape
        self.classes = layout.classes  # 0: regression
        self.input_dtype: np.dtype[Any] = np.dtype(layout.input_dtype)
        self.target_dtype: np.dtype[Any] = np.dtype(layout.target_dtype)
        self.scale = layout.scale
        self.mean, self.std = statistics.mean, statistics.std
        self.channel_mean, self.channel_std = statistics.channel_mean, statistics.channel_std
        self._folder, self._manifest, self._shards = folder, manifest, manifest.of(name)
        self._starts = np.concatenate(([0], np.cumsum([shard.samples for shard in self._shards])))
        self._handle = _Handle()
        self._hashed: set[int] = set()  # shards whose hash was found right

    def normalisation(self, form: str) -> Normalisation:
        """The constants to normalise inputs by: form "scalar", "channel" or "none"."""
        if form == "none":
            return Normalisation(1.0, (0.0,), (1.0,))
        if form == "scalar":
            return Normalisation(self.scale, (self.mean,), (self.std,))
        if form == "channel":
            return Normalisation(self.scale, self.channel_mean, self.channel_std)
        raise DataError(f"normalisation must be scalar, channel or none, got {form!r}")

    def read(self, lo: int, hi: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Samples lo..hi-1: inputs (hi-lo, *sample_shape) as stored, targets (hi-lo, *target_shape), labels as int64.

        Not collective. DataError names the file that is missing, damaged or not one of ours.
        """
        if not 0 <= lo <= hi <= self.samples:
            raise DataError(f"samples {lo}..{hi} are not inside the {self.samples} of {self._folder} ({self.name})")
        inputs = np.empty((hi - lo, *self.sample_shape), self.input_dtype)
        targets = np.empty((hi - lo, *self.target_shape), np.int64 if self.classes else self.target_dtype)
        first, last = np.searchsorted(self._starts, [lo, hi - 1], side="right") - 1 if hi > lo else (0, -1)
        for index in range(int(first), int(last) + 1):
            start = int(self._starts[index])
            a, b = max(lo, start), min(hi, int(self._starts[index + 1]))
            self._read_shard(index, slice(a - start, b - start), inputs[a - lo : b - lo], targets[a - lo : b - lo])
        return inputs, targets

    def _read_shard(self, index: int, part: slice, inputs: NDArray[Any], targets: NDArray[Any]) -> None:
        """Fill both arrays from one file; who reads its first sample, or half of it, compares its hash with the manifest's as well.

        The checksums in the file miss some damage (Fletcher-32 takes 0xFFFF for 0x0000) and a file that is whole but another: an old
        copy on one node. A hash needs all of the file, too much for each of many ranks that share one: the one that begins it looks.
        """
        shard = self._shards[index]
        if (part.start == 0 or 2 * (part.stop - part.start) >= shard.samples) and index not in self._hashed:
            path = self._folder / shard.name
            if path.is_file() and path.stat().st_size == shard.bytes and file_hash(path) != shard.sha256:
                raise DataError(f"{path}: has not the manifest's SHA-256, it is damaged or another file; copy it again or convert again")
            self._hashed.add(index)
        file = self._open(index)
        try:
            inputs[...] = file["inputs"][part]
            targets[...] = file["targets"][part]
        except HDF5_ERRORS as error:
            path = self._folder / shard.name
            raise DataError(f"{path}: cannot be read, the file is damaged ({error}); copy it again or convert again") from error

    def _open(self, index: int) -> h5py.File:
        """The open, checked file of one shard; a forked child opens its own."""
        handle, name = self._handle, self._shards[index].name
        if handle.file is None or handle.pid != os.getpid() or handle.name != name:
            if handle.file is not None and handle.pid == os.getpid():
                handle.file.close()
            self._handle = _Handle(name, os.getpid(), open_shard(self._folder, self._manifest, self._shards[index]))
        assert self._handle.file is not None
        return self._handle.file


@dataclass(frozen=True)
class Dataset:
    """A data set on disk."""

    path: Path
    manifest: Manifest
    _splits: dict[str, Split] = field(default_factory=dict, repr=False)

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 over the manifest and with it over all shards; equal on all ranks that train together."""
        return self.manifest.fingerprint

    def split(self, name: str) -> Split:
        """The split "train" or "test"."""
        if name not in self._splits:
            self._splits[name] = Split(self.path, self.manifest, name)
        return self._splits[name]


def open_dataset(path: str | Path) -> Dataset:
    """Open the data set in a folder written by ``apts-mpi data convert``; reads the manifest alone."""
    folder = Path(path)
    return Dataset(folder, load_manifest(folder))
