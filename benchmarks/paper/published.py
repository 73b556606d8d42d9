"""The paper's own curves: loss and test accuracy by epoch, least, largest and mean of ten trials."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

INVALID = "apts_d_cifar10_50000"  # copies of Adam's


@dataclass(frozen=True)
class Series:
    """One published curve; (epochs + 1,) each, the first before any step."""

    epochs: NDArray[np.float64]
    loss: dict[str, NDArray[np.float64]]  # min, max, mean
    accuracy: dict[str, NDArray[np.float64]]


def read_published(path: Path) -> dict[str, Series]:
    """All series by name; empty if there is no such file."""
    if not path.is_file():
        return {}
    rows: dict[str, list[dict[str, str]]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            rows.setdefault(row["series"], []).append(row)
    return {name: _series(found) for name, found in rows.items() if not name.startswith(INVALID)}


def _series(rows: list[dict[str, str]]) -> Series:
    def column(name: str) -> NDArray[np.float64]:
        return np.array([float(row[name]) for row in rows])

    ends = ("min", "max", "mean")
    return Series(column("epoch"), {end: column(f"loss_{end}") for end in ends}, {end: column(f"acc_{end}") for end in ends})
