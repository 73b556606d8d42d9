"""CIFAR-10 in its binary and its python form, from the folder or straight from the .tar.gz."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from apts_mpi.storage.archive import Member, hash_of, members
from apts_mpi.storage.files import DataError
from apts_mpi.storage.restricted import load_batch
from apts_mpi.storage.sources import Array, Batch, Options, Source, label_layout

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_RECORD = 1 + 3 * 32 * 32  # label, then the channels, row by row
_NAME = re.compile(r"(data_batch_[1-5]|test_batch)(\.bin)?")


def open_cifar10(path: Path, options: Options) -> Source:
    """data_batch_1..5 and test_batch, with or without .bin, at any depth; all of one form."""
    path, counts = _archive(path), {"train": 0, "test": 0}
    seen: dict[str, int] = {}
    for member in members(path):
        if _NAME.fullmatch(member.path.name):
            if member.path.name in seen:
                raise DataError(f"{path}: two files are named {member.path.name}; give the folder of one of them")
            seen[member.path.name] = count = _count(path, member)
            counts[_split(member)] += count
    wanted = [f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"]
    if sorted(seen) not in (wanted, [f"{name}.bin" for name in wanted]):
        have = ", ".join(sorted(seen)) or "none of them"
        raise DataError(f"{path}: needs data_batch_1 to data_batch_5 and test_batch, or these names with .bin; it has {have}")

    def stream() -> Iterator[Batch]:
        for member in members(path):
            if member.path.name in seen:
                yield from _batches(path, member)

    return Source(path.name, hash_of(path), label_layout((3, 32, 32), CLASSES), counts, stream)


def _archive(path: Path) -> Path:
    """The only archive in a folder, as ``data fetch`` leaves it, else the path itself."""
    found = [] if not path.is_dir() else sorted(path.iterdir())
    return found[0] if len(found) == 1 and found[0].is_file() else path


def _split(member: Member) -> str:
    return "test" if member.path.name.startswith("test") else "train"


def _count(path: Path, member: Member) -> int:
    """Samples of one file: by its size in binary form, by reading it in python form."""
    if not member.path.suffix:
        return len(_decode(path, member)[1])
    if member.size % _RECORD or not member.size:
        raise DataError(f"{path}: {member.path} has {member.size} bytes, not a multiple of {_RECORD}; get the original file")
    return member.size // _RECORD


def _decode(path: Path, member: Member) -> tuple[Array, Array]:
    """Images (b, 3, 32, 32) uint8 and labels (b,) of one file."""
    name, raw = f"{path}: {member.path}", member.read()
    if member.path.suffix:
        records = np.frombuffer(raw, np.uint8).reshape(-1, _RECORD)
        return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0]
    content = load_batch(name, raw)
    images, labels = content.get("data"), content.get("labels")
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.ndim != 2 or images.shape[1] != _RECORD - 1:
        raise DataError(f"{name}: its data is not an array of uint8 with {_RECORD - 1} columns; get the original file")
    if not isinstance(labels, list) or len(labels) != len(images) or not labels or not all(type(label) is int for label in labels):
        raise DataError(f"{name}: its labels are not a list of {len(images)} integers; get the original file")
    if min(labels) < 0 or max(labels) > 9:
        raise DataError(f"{name}: labels must be 0 to 9, found {min(labels)} and {max(labels)}; get the original file")
    return images.reshape(-1, 3, 32, 32), np.array(labels, np.uint8)


def _batches(path: Path, member: Member) -> Iterator[Batch]:
    images, labels = _decode(path, member)
    for start in range(0, len(labels), 1000):
        yield Batch(_split(member), images[start : start + 1000], labels[start : start + 1000])
