"""The run directory: what rank 0 writes down while a run goes on, and its final parameters.

``records.csv`` grows by a whole line per outer iteration. A full disk does not end a run: lines
are kept and written later, and the caller is told once. Only ``create`` and ``finish`` raise.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import shutil
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, fields
from datetime import datetime
from enum import Enum
from pathlib import Path
from time import monotonic
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from apts_mpi.contracts import StepInfo
from apts_mpi.rundir import (
    COMPLETION,
    CONFIG,
    FILES,
    FORMAT,
    FORMAT_VERSION,
    PARAMETERS,
    PROVENANCE,
    RECORDS,
    RECORDS_H5,
    TIMING,
    Completion,
    is_run,
    read_run,
)
from apts_mpi.storage.parameters import digest, read_parameters, write_parameters
from apts_mpi.storage.plain import naming, write_atomic
from apts_mpi.storage.sealed import new_file, write_sealed
from apts_mpi.storage.timings import write_laps, write_timers
from apts_mpi.timing import RegionTime, table

__all__ = ["RunDirectory", "digest", "read_parameters", "read_run", "record"]

SAVE_EVERY = 60.0  # s between two writings of records.h5
UNITS = {"time": "s", "eta": "s", "accuracy": "percent", "gradient_samples": "samples", "value_samples": "samples"}


def record(info: StepInfo, extra: Mapping[str, float | None], laps: Mapping[str, float] | None = None) -> dict[str, object]:
    """A line of the records: ``info`` with k as ``iteration``, then ``extra`` (which may refine ``epoch``), then this rank's lap times."""
    values = {"iteration": info.k, **asdict(info)}
    del values["k"], values["raised"]
    values |= {name: math.nan if value is None else value for name, value in extra.items()}
    return values | {f"seconds_{region.replace(' ', '_')}": seconds for region, seconds in (laps or {}).items()}


class RunDirectory:
    """An open run directory; only rank 0 has one. Make it with ``create``."""

    def __init__(self, path: Path, warn: Callable[[str], None]) -> None:
        self.path = path
        self._warn, self._warned = warn, False
        self._columns: dict[str, list[object]] = {}
        self._pending: list[bytes] = []  # lines not on disk yet
        self._saved = monotonic()
        self._file = io.FileIO(path / RECORDS, "w")
        self._good = 0  # bytes of whole lines on disk

    @classmethod
    def create(
        cls,
        directory: str | Path,
        name: str,
        config: str,
        provenance: Mapping[str, object],
        warn: Callable[[str], None] = warnings.warn,
    ) -> RunDirectory:
        """Make ``directory``, or runs/<time>-<name> if it is empty; write config and provenance.

        An earlier run in ``directory`` is moved into its subfolder earlier-<i>; FileExistsError if other files are there.
        """
        path = _claim(Path(directory)) if str(directory) else _fresh(Path("runs"), name)
        marked = {"format": FORMAT, "format_version": FORMAT_VERSION, **provenance}
        write_atomic(path / PROVENANCE, _json(marked))
        write_atomic(path / CONFIG, config.encode())
        return cls(path, warn)

    def append(self, info: StepInfo, extra: Mapping[str, float | None], laps: Mapping[str, float] | None = None) -> None:
        """Add an outer iteration; the first one settles the columns, later ones may not bring new ones (ValueError)."""
        values = {name: _plain(value) for name, value in record(info, extra, laps).items()}
        if not self._columns:
            self._columns = {name: [] for name in values}
            self._pending.append(_line(values))
        new = [name for name in values if name not in self._columns]
        if new:
            raise ValueError(f"records have no column {', '.join(new)}; the first record must have every column")
        cells = [values.get(name, math.nan) for name in self._columns]
        for column, cell in zip(self._columns.values(), cells, strict=True):
            column.append(cell)
        self._pending.append(_line(cells))
        self._try(self._flush)
        if monotonic() - self._saved >= SAVE_EVERY:
            self._try(self.save)

    def save(self, timers: Sequence[Sequence[float]] = (), laps: Mapping[str, NDArray[np.float32]] | None = None) -> None:
        """Write records.h5: ``timers`` are the rows of ``Timers.row`` of all ranks, ``laps`` seconds (iterations, ranks) by region."""
        self._saved = monotonic()
        image = io.BytesIO()
        with new_file(image) as file:
            file.attrs.update({"format": FORMAT, "format_version": FORMAT_VERSION, "title": self.path.resolve().name})
            _write_columns(file, self._columns)
            if timers:
                write_timers(file.create_group("timing"), timers)
            if laps:
                write_laps(file.require_group("timing/laps"), laps)
        write_sealed(self.path / RECORDS_H5, image)

    def finish(
        self, completion: Completion, parameters: Mapping[str, NDArray[Any]], timers: Sequence[Sequence[float]] = (),
        laps: Mapping[str, NDArray[np.float32]] | None = None,
    ) -> None:  # fmt: skip
        """Write all that is left, completion.json last of all; OSError names the file."""
        self._flush()
        with naming(self.path / RECORDS):
            os.fsync(self._file.fileno())
        self._file.close()
        lines = [_line(entry.name for entry in fields(RegionTime)), *(_line(astuple(line)) for line in table(timers))]
        write_atomic(self.path / TIMING, b"".join(lines))
        self.save(timers, laps)
        write_parameters(self.path / PARAMETERS, parameters)
        write_atomic(self.path / COMPLETION, _json(asdict(completion)))

    def close(self) -> None:
        """Close without a completion record, when a run fails; harmless after ``finish``."""
        self._file.close()

    def _flush(self) -> None:
        data = b"".join(self._pending)
        with naming(self.path / RECORDS):
            try:
                written = self._file.write(data)
                if written != len(data):
                    written += self._file.write(data[written:])  # says why it stopped
            except OSError:
                self._file.truncate(self._good)  # no half line stays behind
                self._file.seek(self._good)
                raise
        self._good += len(data)
        self._pending.clear()

    def _try(self, write: Callable[[], None]) -> None:
        """Run ``write``; a disk error is told once and its data kept for the next time."""
        try:
            write()
            self._warned = False
        except OSError as error:
            if not self._warned:
                self._warn(f"{error}; the run goes on and will try again")
            self._warned = True


def _claim(path: Path) -> Path:
    """Make ``path`` or take it over, moving an earlier run of ours aside."""
    with naming(path):
        path.mkdir(parents=True, exist_ok=True)
        if not any(path.iterdir()):
            return path
    if not is_run(path):
        raise FileExistsError(f"run.dir {path} is not empty and holds no run of apts-mpi; give an empty or a new folder")
    aside = next(folder for index in range(1, 10_000) if not (folder := path / f"earlier-{index}").exists())
    with naming(aside):
        aside.mkdir()
        for name in reversed(FILES):  # completion first, provenance almost last: never a finished run that is half there
            if (path / name).exists():
                shutil.move(path / name, aside / name)
    return path


def _fresh(root: Path, name: str) -> Path:
    """A new folder root/<time>-<name>; the second run of a second gets -2."""
    if name in ("", ".", "..") or any(mark in name for mark in "/\\\0"):
        raise ValueError(f"run.name must be a plain file name, got {name!r}")
    stem = f"{datetime.now():%Y%m%d-%H%M%S}-{name}"
    for index in range(1, 10_000):
        path = root / (stem if index == 1 else f"{stem}-{index}")
        try:
            with naming(path):
                path.mkdir(parents=True)
            return path
        except FileExistsError:
            continue
    raise FileExistsError(f"{root / stem} exists ten thousand times")


def _plain(value: object) -> object:
    if isinstance(value, Enum):
        return value.value
    return int(value) if isinstance(value, bool) else value


def _line(cells: Iterable[object]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow([repr(float(cell)) if isinstance(cell, float) else cell for cell in cells])
    return text.getvalue().encode()


def _json(value: Mapping[str, object]) -> bytes:
    finite = {name: None if isinstance(entry, float) and not math.isfinite(entry) else entry for name, entry in value.items()}
    return (json.dumps(finite, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _write_columns(file: h5py.File, columns: Mapping[str, Sequence[object]]) -> None:
    """One 1-D dataset per column along the dimension scale ``iteration``."""
    for name, values in columns.items():
        text = any(isinstance(value, str) for value in values)
        entry = file.create_dataset(name, data=np.char.encode(np.array(values, str), "utf-8") if text else np.array(values))
        entry.attrs["units"] = "s" if name.startswith("seconds_") else UNITS.get(name, "1")
        if name == "iteration":
            entry.make_scale(name)
        else:
            entry.dims[0].attach_scale(file["iteration"])
