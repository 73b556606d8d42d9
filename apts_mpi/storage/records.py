"""The run directory: what rank 0 writes down while a run goes on, and its final parameters.

``records.csv`` grows by a whole line per outer iteration. A full disk or a lost folder does not end
a run: lines are kept and written later, and the caller is told once. Only ``create``, ``resume`` and
``finish`` raise, and ``append`` if somebody else has taken the folder.
"""

from __future__ import annotations

import csv
import io
import json
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, fields
from enum import Enum
from hashlib import sha256
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apts_mpi.contracts import StepInfo
from apts_mpi.lock import LockError, RunLock
from apts_mpi.regular import inside, naming, read_bytes, with_sum
from apts_mpi.rundir import (
    COMPLETION,
    COMPLETION_VERSION,
    CONFIG,
    FILES,
    FORMAT,
    FORMAT_VERSION,
    LOCK,
    PARAMETERS,
    PROVENANCE,
    RECORDS,
    RECORDS_H5,
    TIMING,
    Completion,
    is_run,
    parse_columns,
    read_run,
)
from apts_mpi.storage.claim import claim
from apts_mpi.storage.columns import Columns
from apts_mpi.storage.files import sync
from apts_mpi.storage.lines import Lines
from apts_mpi.storage.parameters import digest, read_parameters, write_parameters
from apts_mpi.storage.plain import write_atomic
from apts_mpi.storage.sealed import new_file, write_sealed
from apts_mpi.storage.timings import write_laps, write_timers
from apts_mpi.timing import RegionTime, table

__all__ = ["RunDirectory", "digest", "read_parameters", "read_run", "record"]

SAVE_EVERY = 60.0  # s between two writings of records.h5


def record(info: StepInfo, extra: Mapping[str, float | None], laps: Mapping[str, float] | None = None) -> dict[str, object]:
    """A line of the records: ``info`` with k as ``iteration``, then ``extra`` (which may refine ``epoch``), then this rank's lap times."""
    values = {"iteration": info.k, **asdict(info)}
    del values["k"], values["raised"]
    values |= {name: math.nan if value is None else value for name, value in extra.items()}
    return values | {f"seconds_{region.replace(' ', '_')}": seconds for region, seconds in (laps or {}).items()}


class RunDirectory:
    """An open run directory, locked; only rank 0 has one. Make it with ``create`` or ``resume``."""

    def __init__(self, path: Path, lock: RunLock, text: bytes, fixed: Mapping[str, bytes], warn: Callable[[str], None]) -> None:
        """``text``: records.csv so far; ``fixed``: the files that are there from the start."""
        self.path = path
        self._lock, self._fixed = lock, fixed
        self._warn, self._warned = warn, set[str]()
        self._columns = Columns()
        if text:
            self._columns.fill(parse_columns(text))
        self._lines = Lines(inside(path, RECORDS), text)
        self._saved = monotonic()

    @classmethod
    def create(
        cls, directory: str | Path, name: str, config: str, provenance: Mapping[str, object], warn: Callable[[str], None] = warnings.warn
    ) -> RunDirectory:
        """Make ``directory``, or runs/<time>-<name> if it is empty; write config and provenance.

        An earlier run in ``directory`` is moved into its subfolder earlier-<i>; FileExistsError if other files are there,
        LockError if another process is at work there.
        """
        path, lock = claim(directory, name, warn)
        fixed = {PROVENANCE: _json({"format": FORMAT, "format_version": FORMAT_VERSION, **provenance}), CONFIG: config.encode()}
        with lock.unless_kept() as keep:
            for file, data in fixed.items():
                write_atomic(path / file, data)
            run = cls(path, lock, b"", fixed, warn)
            keep()
        return run

    @classmethod
    def resume(
        cls, path: str | Path, text: bytes, config: str, provenance: Mapping[str, object], reopen: bool = False,
        warn: Callable[[str], None] = warnings.warn, claimed: Callable[[], None] = lambda: None,
    ) -> RunDirectory:  # fmt: skip
        """Go on in the run directory ``path`` with the records ``text`` (from ``text()`` of then): later lines are cut off.

        ``provenance`` of this start becomes resumed-<i>.json; another ``config`` than before takes the place of config.toml, which
        becomes config-until-<i>.toml. A finished run is FileExistsError, unless told to ``reopen`` it: then its completion record becomes
        completion-until-<i>.json. ``claimed`` is called when nobody else may write there. FileNotFoundError: no run; LockError: another
        process is at work there; other OSErrors: the disk.
        """
        path = Path(path)
        if not is_run(path):
            raise FileNotFoundError(f"{path} is no run directory of apts-mpi, so nothing can be resumed there")
        lock = RunLock.take(path / LOCK, warn=warn)
        with lock.unless_kept() as keep:
            claimed()
            index = next(index for index in range(1, 1_000_000) if not (path / f"resumed-{index}.json").exists())
            if (path / COMPLETION).exists() and not reopen:
                raise FileExistsError(f"the run in {path} has finished; there is nothing to resume")
            if (path / COMPLETION).exists():
                with naming(path / COMPLETION):
                    (path / COMPLETION).replace(path / f"completion-until-{index}.json")
                    sync(path)
            before = read_bytes(inside(path, CONFIG)) if (path / CONFIG).exists() else b""
            if before != config.encode():
                write_atomic(path / f"config-until-{index}.toml", before)
                write_atomic(path / CONFIG, config.encode())
            write_atomic(path / f"resumed-{index}.json", _json(provenance))
            fixed = {PROVENANCE: read_bytes(inside(path, PROVENANCE)), CONFIG: config.encode()}
            run = cls(path, lock, text, fixed, warn)
            keep()
        return run

    def text(self) -> bytes:
        """records.csv up to here, whole lines, on the disk or not; OSError names the file."""
        return self._lines.text()

    def text_later(self) -> Callable[[], bytes]:
        """``text`` of this moment, to be read in another thread."""
        return self._lines.later()

    def append(self, info: StepInfo, extra: Mapping[str, float | None], laps: Mapping[str, float] | None = None) -> None:
        """Add an outer iteration; the first one settles the columns, later ones may not bring new ones (ValueError).

        LockError if another process has taken the folder: then this one must end.
        """
        values = {name: _plain(value) for name, value in record(info, extra, laps).items()}
        if not self._columns.names:
            self._columns.start(values)
            self._lines.add(_line(values))
        self._lines.add(_line(self._columns.add(values)))
        self._touch()
        self._try("lines", self._flush)
        if monotonic() - self._saved >= SAVE_EVERY:
            self._try("save", self.save)

    def save(self, timers: Sequence[Sequence[float]] = (), laps: Mapping[str, NDArray[np.float32]] | None = None) -> None:
        """Write records.h5: ``timers`` are the rows of ``Timers.row`` of all ranks, ``laps`` seconds (iterations, ranks) by region."""
        self._saved = monotonic()
        image = io.BytesIO()
        with new_file(image) as file:
            file.attrs.update({"format": FORMAT, "format_version": FORMAT_VERSION, "title": self.path.resolve().name})
            self._columns.write(file)
            if timers:
                write_timers(file.create_group("timing"), timers)
            if laps:
                write_laps(file.require_group("timing/laps"), laps)
        write_sealed(self.path / RECORDS_H5, image)

    def finish(
        self, completion: Completion, parameters: Mapping[str, NDArray[Any]], timers: Sequence[Sequence[float]] = (),
        laps: Mapping[str, NDArray[np.float32]] | None = None,
    ) -> None:  # fmt: skip
        """Write all that is left, completion.json last of all, and give the folder back; OSError names the file."""
        self._settle()
        times = b"".join([_line(entry.name for entry in fields(RegionTime)), *(_line(astuple(line)) for line in table(timers))])
        write_atomic(self.path / TIMING, times)
        self.save(timers, laps)
        write_parameters(self.path / PARAMETERS, parameters)
        sums = {name: sha256(data).hexdigest() for name, data in {**self._fixed, RECORDS: self.text(), TIMING: times}.items()}
        told = {"format_version": COMPLETION_VERSION, **_finite(asdict(completion)), FILES: sums}
        write_atomic(self.path / COMPLETION, _json(with_sum(told)))
        self.close()

    def leave(self, timers: Sequence[Sequence[float]] = (), laps: Mapping[str, NDArray[np.float32]] | None = None) -> None:
        """Write all that is left of a run that is to go on later, and give the folder back; OSError names the file."""
        self._settle()
        self.save(timers, laps)
        self.close()

    def close(self) -> None:
        """Give the folder back, without a completion record when a run fails; harmless after ``finish``."""
        self._lines.close()
        self._lock.release()

    def _settle(self) -> None:
        self._flush(look=True)
        self._lines.sync()

    def _flush(self, look: bool = False) -> None:
        if self._lines.flush(look):  # into a new folder: it gets everything that the old one had
            for name, data in self._fixed.items():
                if not (self.path / name).exists():
                    write_atomic(self.path / name, data)

    def _touch(self) -> None:
        """Show that this run is alive; a disk that fails is told by the others who write."""
        try:
            self._lock.touch()
        except LockError:
            raise
        except OSError:
            pass

    def _try(self, what: str, write: Callable[[], None]) -> None:
        """Run ``write``; a disk error is told once and its data kept for the next time."""
        try:
            write()
            self._warned.discard(what)
        except OSError as error:
            if what not in self._warned:
                self._warn(f"{error}; the run goes on and will try again")
            self._warned.add(what)


def _plain(value: object) -> object:
    if isinstance(value, Enum):
        return value.value
    return int(value) if isinstance(value, bool) else value


def _line(cells: Iterable[object]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow([repr(float(cell)) if isinstance(cell, float) else cell for cell in cells])
    return text.getvalue().encode()


def _finite(value: Mapping[str, object]) -> dict[str, object]:
    """JSON knows neither nan nor inf."""
    return {name: None if isinstance(entry, float) and not math.isfinite(entry) else entry for name, entry in value.items()}


def _json(value: Mapping[str, object]) -> bytes:
    return (json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
