"""What a run leaves behind: the files of a run directory, and reading the text ones.

Everything that ``show`` and ``plot`` need is text (TOML, JSON, CSV), so that they need no
HDF5 and a run that was killed can be read up to its last whole line. Writing is ``storage``'s.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apts_mpi.timing import RegionTime

FORMAT = "apts-mpi run"
FORMAT_VERSION = 1

CONFIG = "config.toml"
PROVENANCE = "provenance.json"
RECORDS = "records.csv"  # a line per outer iteration, flushed at once
RECORDS_H5 = "records.h5"  # the same columns with units, and the timers of every rank
TIMING = "timing.csv"  # the phase table
PARAMETERS = "parameters.h5"
COMPLETION = "completion.json"  # written last: without it the run did not finish
FILES = (CONFIG, PROVENANCE, RECORDS, RECORDS_H5, TIMING, PARAMETERS, COMPLETION)


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


@dataclass(frozen=True)
class Run:
    """A run directory that was read."""

    path: Path
    config: str  # TOML
    provenance: dict[str, Any]
    columns: dict[str, NDArray[Any]]  # (iterations,) each
    times: list[RegionTime]  # empty if the run did not finish
    completion: Completion | None  # None: the run did not finish

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.resolve().name


def is_run(path: Path) -> bool:
    """Whether ``path`` is a run directory of ours."""
    try:
        return bool(_json(path / PROVENANCE).get("format") == FORMAT)
    except (OSError, ValueError):
        return False


def read_run(path: str | Path) -> Run:
    """Read a run directory, finished or not; FileNotFoundError or ValueError name the file."""
    folder = Path(path)
    if not (folder / PROVENANCE).is_file():
        raise FileNotFoundError(f"{folder} is no run directory: {PROVENANCE} is missing")
    provenance = _json(folder / PROVENANCE)
    if provenance.get("format") != FORMAT:
        raise ValueError(f"{folder / PROVENANCE} was not written by apts-mpi")
    if provenance.get("format_version") != FORMAT_VERSION:
        raise ValueError(f"{folder} has format version {provenance.get('format_version')!r}, this is for version {FORMAT_VERSION}")
    config = (folder / CONFIG).read_text(encoding="utf-8") if (folder / CONFIG).exists() else ""
    columns = read_columns(folder / RECORDS) if (folder / RECORDS).exists() else {}
    done = (folder / COMPLETION).exists()
    completion = _completion(folder / COMPLETION) if done else None
    return Run(folder, config, provenance, columns, _times(folder / TIMING) if done else [], completion)


def finished(folder: Path, config: str) -> bool:
    """Whether ``folder`` holds a run with exactly the settings ``config`` (TOML) that came to its end."""
    if not (folder / CONFIG).is_file():
        return False
    return (folder / CONFIG).read_text(encoding="utf-8") == config and (folder / COMPLETION).is_file()


def read_columns(path: Path) -> dict[str, NDArray[Any]]:
    """The columns of a CSV file up to its first line that is not whole; int64, float64 or str."""
    text = path.read_bytes().decode("utf-8", errors="replace")
    lines = list(csv.reader(text.split("\n")[:-1]))  # what follows the last line end was cut
    if not lines:
        return {}
    names, rows = lines[0], lines[1:]
    whole = next((index for index, row in enumerate(rows) if len(row) != len(names) or "\0" in "".join(row)), len(rows))
    return {name: _typed([row[index] for row in rows[:whole]]) for index, name in enumerate(names)}


def _typed(values: Sequence[str]) -> NDArray[Any]:
    for dtype in (np.int64, np.float64):
        try:
            return np.array(values, dtype=str).astype(dtype) if values else np.empty(0, np.float64)
        except (ValueError, OverflowError):
            continue
    return np.array(values, dtype=str)


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if type(value) is not dict:
        raise ValueError(f"{path} must hold a JSON object")
    return value


def _completion(path: Path) -> Completion:
    values = _json(path)
    names = [entry.name for entry in fields(Completion)]
    missing = [name for name in names if name not in values]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}")
    known: dict[str, Any] = {name: math.nan if values[name] is None else values[name] for name in names}
    return Completion(**known)


def _times(path: Path) -> list[RegionTime]:
    if not path.exists():
        return []
    columns = read_columns(path)
    if set(columns) != {entry.name for entry in fields(RegionTime)}:
        raise ValueError(f"{path} must have the columns {', '.join(entry.name for entry in fields(RegionTime))}")
    count = len(columns["phase"])
    return [RegionTime(**{name: column[index].item() for name, column in columns.items()}) for index in range(count)]
