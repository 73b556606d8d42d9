"""The records of a run column by column, in eight bytes a value."""

from __future__ import annotations

import math
import sys
from array import array
from collections.abc import Iterable, Mapping
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

UNITS = {"time": "s", "eta": "s", "accuracy": "percent", "gradient_samples": "samples", "value_samples": "samples"}


class Columns:
    """Columns of numbers or texts; the first row settles which."""

    def __init__(self) -> None:
        self._cells: dict[str, array[float] | list[str]] = {}
        self._whole: set[str] = set()  # columns of integers alone

    @property
    def names(self) -> list[str]:
        """In order; empty before the first row."""
        return list(self._cells)

    def start(self, row: Mapping[str, object]) -> None:
        """Settle the columns by the first row, without adding it."""
        self._cells = {name: [] if isinstance(value, str) else array("d") for name, value in row.items()}
        self._whole = {name for name, value in row.items() if isinstance(value, int)}

    def fill(self, columns: Mapping[str, NDArray[Any]]) -> None:
        """Take over the columns that were read from a file."""
        for name, values in columns.items():
            text = values.dtype.kind == "U"
            self._cells[name] = [sys.intern(value) for value in values.tolist()] if text else array("d", values.astype(np.float64))
        self._whole = {name for name, values in columns.items() if values.dtype.kind == "i"}

    def add(self, row: Mapping[str, object]) -> list[object]:
        """Add a row and give its cells in order, nan where it has none; ValueError if it has others."""
        new = [name for name in row if name not in self._cells]
        if new:
            raise ValueError(f"records have no column {', '.join(new)}; the first record must have every column")
        cells = [row.get(name, math.nan) for name in self._cells]
        for (name, column), cell in zip(self._cells.items(), cells, strict=True):
            if isinstance(column, list):
                column.append(sys.intern(str(cell)))
            else:
                column.append(float(cell))  # type: ignore[arg-type]
                if not isinstance(cell, int):
                    self._whole.discard(name)
        return cells

    def arrays(self) -> Iterable[tuple[str, NDArray[Any]]]:
        """Each column as int64, float64 or bytes (UTF-8)."""
        for name, column in self._cells.items():
            if isinstance(column, list):
                yield name, np.char.encode(np.array(column, str), "utf-8")
            else:
                yield name, np.array(column, np.int64 if name in self._whole else np.float64)

    def write(self, file: h5py.File) -> None:
        """One 1-D dataset per column along the dimension scale ``iteration``."""
        for name, values in self.arrays():
            entry = file.create_dataset(name, data=values)
            entry.attrs["units"] = "s" if name.startswith("seconds_") else UNITS.get(name, "1")
            if name == "iteration":
                entry.make_scale(name)
            else:
                entry.dims[0].attach_scale(file["iteration"])
