"""Every table and figure, from the records alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from paper import bars
from paper.curves import Store
from paper.table import Table, write


@dataclass(frozen=True)
class Context:
    """What tables and figures are made from, and where they go."""

    store: Store
    seeds: int
    epochs: int  # of the curves
    published: Path
    results: Path


def tables(names: Sequence[str], known: Context) -> list[Table]:
    return bars.tables(known.store, known.seeds) if {"bars", "presets"} & set(names) else []


def make(names: Sequence[str], known: Context, say: Callable[[str], None]) -> list[str]:
    """Write and print the tables; the bars that have fallen."""
    found = tables(names, known)
    write(found, known.results)
    for table in found:
        say(f"\n{table.markdown()}")
    return bars.fallen(found)
