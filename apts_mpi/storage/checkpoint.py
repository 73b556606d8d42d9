"""Checkpoints of a run: sealed HDF5 files, each followed by a commit record that makes it count.

RUN/checkpoints/000012.h5 is the twelfth; 000012.json names its size and SHA-256 and is written when the file and its name
are safe on the disk. Files without a record are leftovers of a write that did not end. The newest is the one with the highest
number; no clock is asked. No path is ever read from a file.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from apts_mpi.regular import inside, naming, read_object, sum_holds, with_sum
from apts_mpi.storage.files import DataError, file_hash, sync
from apts_mpi.storage.plain import write_atomic
from apts_mpi.storage.sealed import new_file, open_sealed, write_sealed

FORMAT, FORMAT_VERSION = "apts-mpi checkpoint", 1
RECORD_BYTES = 4096  # of a commit record, at most
FACTS_BYTES = 1 << 20
SUBDOMAINS_MAX = 1 << 20
FACTS: dict[str, tuple[type, ...]] = {  # what the facts must hold
    "iteration": (int,), "subdomains": (int,), "settings": (dict,), "layout": (str,), "data": (str,), "arithmetic": (str,),
    "messages": (int,), "bytes": (int,), "seconds": (int, float), "accuracy": (int, float, type(None)),
}  # fmt: skip
KINDS = ("float32", "float64", "uint8", "int64")
_RECORD = re.compile(r"([0-9]{6,12})\.json")

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run between two outer iterations."""

    sequence: int  # of checkpoints in this run, from 1
    facts: dict[str, Any]  # JSON: iteration, config, counters, what the model and the data are
    theta: NDArray[Any]  # (n,)
    shared: Arrays = field(default_factory=dict)  # state of the method, the same on all ranks
    own: Sequence[Arrays] = ()  # state of each subdomain, in the order of their numbers: 1-D arrays
    records: bytes = b""  # records.csv so far


def stem(folder: Path, sequence: int) -> Path:
    """The checkpoint's path without its suffix."""
    return folder / f"{sequence:06d}"


def write(folder: Path, checkpoint: Checkpoint, keep: int) -> int:
    """Write a checkpoint into ``folder`` (made if missing), then its commit record, then remove all but ``keep``; returns its bytes.

    On OSError, which names the file, all earlier checkpoints are as they were.
    """
    _check_folder(folder)
    with naming(folder):
        folder.mkdir(exist_ok=True)
        sync(folder.parent)
    path = stem(folder, checkpoint.sequence)
    nbytes, sha256 = write_sealed(path.with_suffix(".h5"), _image(checkpoint))
    record = {
        "format": FORMAT, "format_version": FORMAT_VERSION, "sequence": checkpoint.sequence,
        "iteration": checkpoint.facts["iteration"], "bytes": nbytes, "sha256": sha256,
    }  # fmt: skip
    write_atomic(path.with_suffix(".json"), (json.dumps(with_sum(record), indent=1) + "\n").encode())
    with contextlib.suppress(OSError):  # what is too many is no reason to call a good checkpoint a failure
        _prune(folder, keep)
    return nbytes


def sequences(folder: Path) -> list[int]:
    """Numbers of the committed checkpoints, newest first."""
    _check_folder(folder)
    try:
        found = [_RECORD.fullmatch(entry.name) for entry in folder.iterdir()]
    except FileNotFoundError:
        return []
    return sorted((int(match[1]) for match in found if match), reverse=True)


def highest(folder: Path) -> int:
    """The highest number that any file of a checkpoint has, committed, damaged or left over; 0: there is none."""
    _check_folder(folder)
    names = [entry.name.split(".")[0] for entry in folder.iterdir()] if folder.is_dir() else []
    return max((int(name) for name in names if name.isdecimal()), default=0)


def newest(folder: Path) -> tuple[Checkpoint | None, dict[int, str]]:
    """The newest checkpoint that is whole, and why newer ones were passed over; None: there is none, or none is whole."""
    problems: dict[int, str] = {}
    for sequence in sequences(folder):
        try:
            return read(folder, sequence), problems
        except (DataError, OSError) as error:
            problems[sequence] = str(error)
    return None, problems


def set_aside(folder: Path, damaged: Iterable[int]) -> None:
    """Let damaged checkpoints no longer count among those that are kept; their files stay."""
    for sequence in damaged:
        record = stem(folder, sequence).with_suffix(".json")
        with naming(record):
            record.replace(record.with_name(record.name + ".damaged"))


def read(folder: Path, sequence: int) -> Checkpoint:
    """Checkpoint ``sequence``; DataError or OSError name the file unless it is exactly what its record says."""
    path = inside(folder, stem(folder, sequence).name + ".h5")
    record = _record(inside(folder, path.stem + ".json"), sequence)
    if type(record.get("bytes")) is not int:
        raise DataError(f"{path.with_suffix('.json')}: says nothing of the size of its file")
    with open_sealed(path, limit=record["bytes"]) as file:
        _check_file(path, record)
        if set(file) != {"facts", "theta", "shared", "own", "records"} or len(file.attrs):
            raise DataError(f"{path}: holds {', '.join(file)}, which is not what a checkpoint holds")
        facts = _facts(path, file)
        theta = _array(path, file["theta"])
        shared = {name: _array(path, entry) for name, entry in _group(path, file["shared"]).items()}
        own = _own(path, _group(path, file["own"]), facts.get("subdomains"))
        records = _bytes(path, file["records"])
    if theta.ndim != 1 or not len(theta) or theta.dtype.kind != "f" or not np.isfinite(theta).all():
        raise DataError(f"{path}: theta is no vector of finite numbers")
    return Checkpoint(sequence, facts, theta, shared, own, records)


def _check_folder(folder: Path) -> None:
    """DataError if the folder is a link, which may lead to the checkpoints of another run."""
    if folder.is_symlink():
        raise DataError(f"{folder}: is a symbolic link; put the folder itself there")


def _image(checkpoint: Checkpoint) -> io.BytesIO:
    """The HDF5 file, in memory."""
    image = io.BytesIO()
    facts = {"format": FORMAT, "format_version": FORMAT_VERSION, **checkpoint.facts}
    with new_file(image) as file:
        file["facts"] = np.frombuffer(json.dumps(facts, allow_nan=False).encode(), np.uint8)
        file["theta"] = checkpoint.theta
        file["records"] = np.frombuffer(checkpoint.records, np.uint8)
        shared = file.create_group("shared")
        for name, array in checkpoint.shared.items():
            shared[name] = array
        own = file.create_group("own")
        for name in sorted({name for arrays in checkpoint.own for name in arrays}):
            rows = {index: arrays[name] for index, arrays in enumerate(checkpoint.own) if name in arrays}
            own[f"{name}/subdomains"] = np.array(list(rows), np.int64)
            own[f"{name}/values"] = np.stack(list(rows.values()))
    return image


def _record(where: Path, sequence: int) -> dict[str, Any]:
    """The commit record in the file ``where``."""
    record = read_object(where, RECORD_BYTES)
    wanted = {"format": FORMAT, "sequence": sequence}
    if any(record.get(name) != value for name, value in wanted.items()):
        raise DataError(f"{where}: is no commit record of checkpoint {sequence}")
    if not sum_holds(record):
        raise DataError(f"{where}: is damaged, its checksum is not that of its content")
    if record.get("format_version") != FORMAT_VERSION:
        raise DataError(f"{where}: has format version {record.get('format_version')!r}, this program reads {FORMAT_VERSION}")
    return record


def _check_file(path: Path, record: Mapping[str, Any]) -> None:
    """Raise DataError unless the file is the one that its commit record names."""
    if path.stat().st_size != record.get("bytes") or file_hash(path) != record.get("sha256"):
        raise DataError(f"{path}: is not the file that its commit record names")


def _facts(path: Path, file: h5py.File) -> dict[str, Any]:
    """The JSON object of the checkpoint."""
    text = _bytes(path, file["facts"])
    try:
        facts = json.loads(text.decode()) if len(text) <= FACTS_BYTES else None
    except (ValueError, RecursionError):
        facts = None
    if type(facts) is not dict or facts.pop("format", None) != FORMAT:
        raise DataError(f"{path}: its facts are not those of a checkpoint")
    if facts.pop("format_version", None) != FORMAT_VERSION:
        raise DataError(f"{path}: has another format version than its commit record")
    wrong = [name for name, kinds in FACTS.items() if type(facts.get(name)) not in kinds]
    if wrong or facts["iteration"] < 0:
        raise DataError(f"{path}: its facts are not those of a checkpoint: {', '.join(wrong) or 'iteration'}")
    return facts


def _array(path: Path, entry: Any) -> NDArray[Any]:
    """A dataset of plain numbers; DataError for anything else."""
    if not isinstance(entry, h5py.Dataset) or entry.dtype.name not in KINDS or entry.ndim > 2:
        raise DataError(f"{path}: {entry.name} is no array of {', '.join(KINDS)} with at most two axes")
    found = np.asarray(entry[()])
    return found.astype(found.dtype.newbyteorder("="), copy=False)


def _bytes(path: Path, entry: Any) -> bytes:
    """A dataset of bytes; DataError for anything else."""
    cells = _array(path, entry)
    if cells.dtype != np.uint8 or cells.ndim != 1:
        raise DataError(f"{path}: {entry.name} holds something else than bytes")
    return cells.tobytes()


def _group(path: Path, entry: Any) -> h5py.Group:
    if not isinstance(entry, h5py.Group):
        raise DataError(f"{path}: {entry.name} is no group")
    return entry


def _own(path: Path, group: h5py.Group, count: Any) -> list[dict[str, NDArray[Any]]]:
    """What each of ``count`` subdomains keeps."""
    if type(count) is not int or not 1 <= count <= SUBDOMAINS_MAX:
        raise DataError(f"{path}: says nothing of the number of its subdomains")
    own: list[dict[str, NDArray[Any]]] = [{} for _ in range(count)]
    for name, pair in group.items():
        if set(_group(path, pair)) != {"subdomains", "values"}:
            raise DataError(f"{path}: {pair.name} holds {', '.join(pair)}")
        indices, values = _array(path, pair["subdomains"]), _array(path, pair["values"])
        rising = indices.dtype == np.int64 and indices.ndim == 1 and bool((np.diff(indices) > 0).all())
        if not rising or values.ndim != 2 or len(values) != len(indices) or (len(indices) and not 0 <= indices[0] <= indices[-1] < count):
            raise DataError(f"{path}: {pair.name} does not fit {count} subdomains")
        for index, row in zip(indices, values, strict=True):
            own[index][name] = row
    return own


def _prune(folder: Path, keep: int) -> None:
    """Remove old checkpoints, a record before its file, and files whose record was never written."""
    kept = sequences(folder)[:keep]
    for entry in sorted(folder.iterdir(), key=lambda path: path.suffix != ".json"):
        number = entry.name.split(".")[0]
        aside = entry.with_suffix(".json.damaged").exists()
        if entry.suffix in (".json", ".h5") and number.isdigit() and int(number) not in kept and not aside:
            entry.unlink(missing_ok=True)
