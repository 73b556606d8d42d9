"""Raw data in plain arrays: MNIST's IDX files and NumPy's .npy and .npz, read as streams and never unpickled."""

from __future__ import annotations

import contextlib
import gzip
import math
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from apts_mpi.storage.files import DataError
from apts_mpi.storage.manifest import Layout
from apts_mpi.storage.sources import (
    Array,
    Batch,
    Options,
    Source,
    batch_size,
    class_dtype,
    label_layout,
    source_hash,
)

READ_ERRORS = (OSError, EOFError, zipfile.BadZipFile)


@dataclass(frozen=True)
class Stream:
    """An array that is read from its first row to its last."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    open: Callable[[], contextlib.AbstractContextManager[IO[bytes]]]  # positioned at the first value

    def rows(self, count: int) -> Iterator[Array]:
        """The rows, ``count`` at a time, in native byte order."""
        row_bytes = math.prod(self.shape[1:]) * self.dtype.itemsize
        try:
            with self.open() as handle:
                for start in range(0, self.shape[0], count):
                    rows = min(count, self.shape[0] - start)
                    raw = handle.read(rows * row_bytes)
                    if len(raw) != rows * row_bytes:
                        raise DataError(f"{self.name}: ends inside row {start + len(raw) // max(1, row_bytes)} of {self.shape[0]}")
                    array = np.frombuffer(raw, self.dtype).reshape(rows, *self.shape[1:])
                    yield array.astype(self.dtype.newbyteorder("="), copy=False)
                if handle.read(1):
                    raise DataError(f"{self.name}: goes on after the {self.shape[0]} rows that its header promises")
        except READ_ERRORS as error:
            raise DataError(f"{self.name}: damaged ({error}); get the file again") from error


def paired(pairs: dict[str, tuple[Stream, Stream]]) -> Iterator[Batch]:
    """Batches of inputs and targets side by side, split after split."""
    for split, (inputs, targets) in pairs.items():
        count = batch_size(math.prod(inputs.shape[1:]) * inputs.dtype.itemsize)
        for x, y in zip(inputs.rows(count), targets.rows(count), strict=True):
            yield Batch(split, x, y)


def open_mnist(path: Path, options: Options) -> Source:
    """MNIST and its look-alikes: four IDX files in a folder, each compressed by gzip or not."""
    streams: dict[str, tuple[Stream, Stream]] = {}
    files: list[Path] = []
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images, labels = _idx_file(path, f"{prefix}-images", 3), _idx_file(path, f"{prefix}-labels", 1)
        files += [images, labels]
        streams[split] = (idx_stream(images, 3), idx_stream(labels, 1))
        if streams[split][0].shape[0] != streams[split][1].shape[0]:
            raise DataError(f"{images} has {streams[split][0].shape[0]} images, {labels} {streams[split][1].shape[0]} labels")
    rows, columns = streams["train"][0].shape[1:]
    if streams["test"][0].shape[1:] != (rows, columns):
        raise DataError(f"{path}: training images are {rows} x {columns}, test images {streams['test'][0].shape[1:]}")

    def stream() -> Iterator[Batch]:
        for split, images, labels in paired(streams):
            yield Batch(split, images[:, np.newaxis], labels)

    counts = {split: x.shape[0] for split, (x, _) in streams.items()}
    return Source(path.name, source_hash(files), label_layout((1, rows, columns), tuple("0123456789")), counts, stream)


def _idx_file(folder: Path, prefix: str, dims: int) -> Path:
    """The file under one of its usual names."""
    names = [f"{prefix}{dot}idx{dims}-ubyte{end}" for dot in "-." for end in ("", ".gz")]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise DataError(f"{folder}: no file {names[0]} or {names[1]}; get them with: apts-mpi data fetch mnist {folder}")


def idx_stream(path: Path, dims: int) -> Stream:
    """An IDX file of unsigned bytes: magic 0x00000800 + dims, the sizes as big-endian uint32, the values."""

    @contextlib.contextmanager
    def at_values() -> Iterator[IO[bytes]]:
        with open_plain(path) as handle:
            handle.read(4 + 4 * dims)
            yield handle

    try:
        with open_plain(path) as handle:
            header = np.frombuffer(handle.read(4 + 4 * dims), ">u4")
    except (*READ_ERRORS, ValueError) as error:
        raise DataError(f"{path}: not an IDX file ({error}); get the file again") from error
    if len(header) != dims + 1 or header[0] != 0x800 + dims or min(header[1:]) < 1:
        raise DataError(f"{path}: not an IDX file of {dims} dimensions of unsigned bytes; get the file again")
    return Stream(str(path), tuple(int(size) for size in header[1:]), np.dtype(np.uint8), at_values)


def open_plain(path: Path) -> IO[bytes]:
    """A file, decompressed on the way if it is gzip."""
    with path.open("rb") as handle:
        packed = handle.read(2) == b"\x1f\x8b"
    return gzip.open(path, "rb") if packed else path.open("rb")  # type: ignore[return-value]


def open_npz(path: Path, options: Options) -> Source:
    """x_train, y_train, x_test, y_test, or x and y, in one .npz or as .npy files of these names in a folder."""
    arrays = npy_streams(path)
    if {"x_train", "y_train", "x_test", "y_test"} <= arrays.keys():
        pairs = {split: (arrays[f"x_{split}"], arrays[f"y_{split}"]) for split in ("train", "test")}
    elif {"x", "y"} <= arrays.keys():
        pairs = {"all": (arrays["x"], arrays["y"])}
    else:
        raise DataError(f"{path}: needs x_train, y_train, x_test and y_test, or x and y; it has {', '.join(sorted(arrays)) or 'nothing'}")
    layout = _npz_layout(path, pairs, options)
    counts = {split: x.shape[0] for split, (x, _) in pairs.items()}
    files = sorted(path.glob("*.npy")) if path.is_dir() else [path]
    held = max(1, round(options.test_share * counts["all"])) if "all" in counts else 0
    return Source(path.name, source_hash(files), layout, counts, lambda: paired(pairs), held_out=held)


def _npz_layout(path: Path, pairs: dict[str, tuple[Stream, Stream]], options: Options) -> Layout:
    """Shapes and types: uint8 stays, other numbers become floats; integer targets are classes."""
    x, y = next(iter(pairs.values()))
    for a, b in pairs.values():
        if not a.shape or not b.shape or a.shape[0] != b.shape[0] or a.shape[0] < 2:
            raise DataError(f"{path}: {a.name} {a.shape} and {b.name} {b.shape} must have the same number of samples, two or more")
        if (a.shape[1:], a.dtype, b.shape[1:], b.dtype.kind) != (x.shape[1:], x.dtype, y.shape[1:], y.dtype.kind) or len(a.shape) < 2:
            raise DataError(f"{path}: {a.name} {a.shape} {a.dtype} must have two or more dimensions and match {x.name} {x.shape} {x.dtype}")
    floats = "<f8" if options.float64 else "<f4"
    dtype, scale = ("|u1", 255.0) if x.dtype == np.uint8 else (floats, 1.0)
    if y.dtype.kind not in "iu" and not options.classes:
        return Layout(x.shape[1:], y.shape[1:], dtype, floats, 0, (), scale)
    classes = options.classes or 1 + max(int(rows.max()) for _, targets in pairs.values() for rows in targets.rows(1 << 18))
    if classes < 1:
        raise DataError(f"{path}: {y.name} has no class; labels are 0, 1, 2, ...")
    return Layout(x.shape[1:], y.shape[1:], dtype, class_dtype(classes), classes, (), scale)


def npy_streams(path: Path) -> dict[str, Stream]:
    """The arrays of a .npz, or of the .npy files of a folder, by name; their headers are read, their values are not."""
    if path.is_dir():
        return {file.stem: npy_stream(str(file), lambda file=file: file.open("rb")) for file in sorted(path.glob("*.npy"))}  # type: ignore[misc]
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith(".npy")]
    except READ_ERRORS as error:
        raise DataError(f"{path}: not an .npz file ({error})") from error
    return {name[:-4]: npy_stream(f"{path}:{name}", _member(path, name)) for name in names}


def _member(path: Path, name: str) -> Callable[[], IO[bytes]]:
    return lambda: zipfile.ZipFile(path).open(name)


def npy_stream(name: str, opened: Callable[[], IO[bytes]]) -> Stream:
    """One .npy as a stream; arrays of objects, text and complex numbers, and Fortran order are refused."""

    def header(handle: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
        version = np.lib.format.read_magic(handle)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        return read(handle)

    @contextlib.contextmanager
    def at_values() -> Iterator[IO[bytes]]:
        with opened() as handle:
            header(handle)
            yield handle

    try:
        with opened() as handle:
            shape, fortran, dtype = header(handle)
    except (*READ_ERRORS, ValueError) as error:
        raise DataError(f"{name}: not a NumPy array ({error})") from error
    if dtype.kind not in "uifb" or dtype.itemsize > 8:
        raise DataError(f"{name}: holds {dtype}, needed are integers or floats of at most 64 bits; save it with .astype(np.float32)")
    if fortran and len(shape) > 1:
        raise DataError(f"{name}: is in Fortran order; save np.ascontiguousarray of it")
    return Stream(name, shape, dtype, at_values)
