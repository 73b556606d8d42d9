"""What a run leaves behind: the files of a run directory, and reading the text ones.

Everything that ``show`` and ``plot`` need is text (TOML, JSON, CSV), so that they need no
HDF5 and a run that was killed can be read up to its last whole line. Writing is ``storage``'s.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apts_mpi.regular import SUM, DataError, inside, read_bytes, read_object, sum_holds
from apts_mpi.timing import RegionTime

FORMAT = "apts-mpi run"
FORMAT_VERSION = 1

CONFIG = "config.toml"
PROVENANCE = "provenance.json"
CONFIG_BYTES = 1 << 20
CELL = 120  # characters in a cell of a table, at most
RECORDS = "records.csv"  # a line per outer iteration, flushed at once
RECORDS_H5 = "records.h5"  # the same columns with units, and the timers of every rank
TIMING = "timing.csv"  # the phase table
PARAMETERS = "parameters.h5"
COMPLETION = "completion.json"  # written last: without it the run did not finish
LOCK = "lock"  # who is at work here, see lock
CHECKPOINTS = "checkpoints"  # a folder, see storage.checkpoint
_EARLIER = "resumed-*.json", "config-until-*.toml", "completion-until-*.json"  # of the starts before the last
_PARTS = (COMPLETION, PARAMETERS, TIMING, RECORDS_H5, RECORDS, CHECKPOINTS, *_EARLIER, CONFIG, PROVENANCE)
FILES = "files"  # in the completion record: SHA-256 of the other text files
TEXTS = ("status",)  # columns of the records that hold no numbers
COMPLETION_VERSION = 2  # 1 had no checksum


@dataclass(frozen=True)
class Completion:
    """How a run ended; nan where a figure does not exist."""

    status: str  # a value of contracts.Status
    iterations: int  # outer iterations
    epochs: float
    n_params: int
    subdomains: int
    ranks: int
    loss: float  # training loss, last known
    accuracy: float  # test set, per cent, last known
    passes: float  # gradient evaluations in passes over the training set
    reductions: int  # of n-vectors
    messages: int  # of one rank, all sizes
    bytes: int  # payload of one rank
    seconds: float  # wall time of the run phase
    theta_sha256: str  # of the final parameters, see storage.records.digest


_KINDS: dict[str, type] = {"str": str, "int": int, "float": float}


@dataclass(frozen=True)
class Run:
    """A run directory that was read."""

    path: Path
    config: str  # TOML
    provenance: dict[str, Any]
    columns: dict[str, NDArray[Any]]  # (iterations,) each
    times: list[RegionTime]  # empty if the run did not finish
    completion: Completion | None  # None: the run did not finish
    resumed: list[int]  # the outer iterations after which it was gone on with; times are of what followed the last

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.resolve().name


def parts(folder: Path) -> list[Path]:
    """What belongs to the run in ``folder``: the completion record first, what makes it a run last."""
    return [entry for pattern in _PARTS for entry in sorted(folder.glob(pattern))]


def is_run(path: Path) -> bool:
    """Whether ``path`` is a run directory of ours."""
    try:
        return bool(read_object(inside(path, PROVENANCE)).get("format") == FORMAT)
    except (OSError, ValueError):
        return False


def read_run(path: str | Path) -> Run:
    """Read a run directory, finished or not; FileNotFoundError or ValueError name the file."""
    folder = Path(path)
    if not (folder / PROVENANCE).is_file():
        why = "; ".join([f"{PROVENANCE} is missing", *(f"{path.name} in it is one" for path in sorted(folder.glob("*")) if is_run(path))])
        raise FileNotFoundError(f"{folder} is no run directory: {why if folder.is_dir() else 'there is no such folder'}")
    provenance = read_object(inside(folder, PROVENANCE))
    if provenance.get("format") != FORMAT:
        raise ValueError(f"{folder / PROVENANCE} was not written by apts-mpi")
    if provenance.get("format_version") != FORMAT_VERSION:
        raise ValueError(f"{folder} has format version {provenance.get('format_version')!r}, this is for version {FORMAT_VERSION}")
    config = read_bytes(inside(folder, CONFIG), CONFIG_BYTES).decode("utf-8", "replace") if (folder / CONFIG).exists() else ""
    columns = _numbers(read_columns(inside(folder, RECORDS))) if (folder / RECORDS).exists() else {}
    done = (folder / COMPLETION).exists()
    completion = _finished(folder) if done else None
    return Run(folder, config, provenance, columns, _times(inside(folder, TIMING)) if done else [], completion, _resumed(folder))


def _finished(folder: Path) -> Completion:
    """The completion record of ``folder``, whose files are those that it knows; DataError says what to do if not."""
    try:
        completion = _completion(inside(folder, COMPLETION))
    except DataError as error:
        told = "if it is damaged, move it away: show then has the rest, and how to go on if there is a checkpoint"
        raise DataError(f"{error}; {told}") from error
    _check_files(folder)
    return completion


def _resumed(folder: Path) -> list[int]:
    """The outer iterations after which the run was gone on with, in the order of the starts."""
    found = sorted(folder.glob(_EARLIER[0]), key=lambda path: (len(path.name), path.name))
    told = [read_object(inside(folder, path.name)).get("resumed_after_iteration") for path in found]
    return [iteration for iteration in told if type(iteration) is int and iteration >= 0]


def last_checkpoint(folder: Path) -> int | None:
    """Outer iterations after which the newest checkpoint in ``folder`` was committed; None: there is none. It may be damaged."""
    place = folder / CHECKPOINTS
    records = [path for path in place.glob("*.json") if path.stem.isdecimal()] if not place.is_symlink() else []
    for record in sorted(records, key=lambda path: int(path.stem), reverse=True):
        with contextlib.suppress(OSError, ValueError, TypeError):
            found = read_object(record, 4096)
            if "bytes" not in found or record.with_suffix(".h5").stat().st_size == found["bytes"]:
                return int(found["iteration"])
    return None


def completed(folder: Path) -> bool:
    """Whether the run in ``folder`` came to its end, as a completion record says that is whole."""
    try:
        return _completion(inside(folder, COMPLETION)) is not None
    except (OSError, ValueError):
        return False


def _check_files(folder: Path) -> None:
    """Raise DataError if a file of a finished run is another one than when it finished."""
    known = read_object(folder / COMPLETION).get(FILES, {})  # its checksum was looked at
    for name in (CONFIG, PROVENANCE, RECORDS, TIMING):
        path = folder / name
        if name in known and path.exists() and hashlib.sha256(read_bytes(path)).hexdigest() != known[name]:
            raise DataError(f"{path} is damaged: it is not the file that the run left; take a copy, or make the run again")


def finished(folder: Path, config: str) -> bool:
    """Whether ``folder`` holds a run with exactly the settings ``config`` (TOML) that came to its end."""
    try:
        return read_bytes(inside(folder, CONFIG), CONFIG_BYTES) == config.encode() and completed(folder)
    except (OSError, ValueError):
        return False


def read_columns(path: Path) -> dict[str, NDArray[Any]]:
    """The columns of a CSV file up to its first line that is not whole; int64, float64 or str."""
    return parse_columns(read_bytes(path))


def parse_columns(text: bytes) -> dict[str, NDArray[Any]]:
    """The columns of the text of a CSV file, likewise."""
    lines = text.decode("utf-8", errors="replace").split("\n")[:-1]  # what follows the last line end was cut
    try:
        cells = list(csv.reader(lines))
    except csv.Error:  # a cell without an end
        cells = [line.split(",") for line in lines]
    if not cells:
        return {}
    names, rows = cells[0], cells[1:]
    whole = next((index for index, row in enumerate(rows) if not _is_whole(row, len(names))), len(rows))
    return {name: _typed([row[index] for row in rows[:whole]]) for index, name in enumerate(names)}


def _is_whole(row: Sequence[str], cells: int) -> bool:
    """Whether a row is one of ours: numpy makes all cells of a column as wide as the widest, so a long one would be much memory."""
    return len(row) == cells and all(len(cell) <= CELL and "\0" not in cell for cell in row)


def _numbers(columns: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Records up to their first row that has something else than a number where one should be: from there on they are damaged."""
    odd = [name for name, column in columns.items() if column.dtype.kind == "U" and name not in TEXTS]
    whole = min((_first_text(columns[name]) for name in odd), default=None)
    if whole is None:
        return columns
    cut = {name: column[:whole] for name, column in columns.items()}
    return cut | {name: _typed(cut[name].tolist()) for name in odd}


def _first_text(column: NDArray[Any]) -> int:
    for index, cell in enumerate(column.tolist()):
        try:
            float(cell)
        except ValueError:
            return index
    return len(column)


def _typed(values: Sequence[str]) -> NDArray[Any]:
    for dtype in (np.int64, np.float64):
        try:
            return np.array(values, dtype=str).astype(dtype) if values else np.empty(0, np.float64)
        except (ValueError, OverflowError):
            continue
    return np.array(values, dtype=str)


def _completion(path: Path) -> Completion:
    """The completion record; DataError if a value is not the one that was written."""
    values = read_object(path)
    kinds = {entry.name: _KINDS[str(entry.type)] for entry in fields(Completion)}
    missing = [name for name in kinds if name not in values]
    if missing:
        raise DataError(f"{path} lacks {', '.join(missing)}")
    if (SUM in values or "format_version" in values) and not (sum_holds(values) and values.get("format_version") == COMPLETION_VERSION):
        raise DataError(f"{path} is damaged, or of another version: whether the run finished is not known")
    known: dict[str, Any] = {name: math.nan if values[name] is None and kinds[name] is float else values[name] for name in kinds}
    wrong = [name for name, value in known.items() if type(value) is not kinds[name] and not (kinds[name] is float and type(value) is int)]
    if wrong:
        raise DataError(f"{path} has something else than a {kinds[wrong[0]].__name__} for {wrong[0]}")
    return Completion(**known)


def _times(path: Path) -> list[RegionTime]:
    if not path.exists():
        return []
    columns = read_columns(path)
    if set(columns) != {entry.name for entry in fields(RegionTime)}:
        raise ValueError(f"{path} must have the columns {', '.join(entry.name for entry in fields(RegionTime))}")
    wrong = [entry.name for entry in fields(RegionTime) if (columns[entry.name].dtype.kind == "U") != (str(entry.type) == "str")]
    count = len(columns["phase"])
    if wrong and count:
        raise DataError(f"{path} is damaged: it has no numbers where they should be, or numbers for names, in {', '.join(wrong)}")
    return [RegionTime(**{name: column[index].item() for name, column in columns.items()}) for index in range(count)]
