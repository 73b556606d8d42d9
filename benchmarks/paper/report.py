"""Every table and figure, from run directories and records alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from paper import bars, beyond, figures, repeated, targets, tuning, variants
from paper.cases import READ
from paper.published import read_published
from paper.store import Store
from paper.table import Row, Table, write

TABLES: dict[str, tuple[str, ...]] = {  # by experiment
    "bars": ("bars",), "presets": ("presets",), "tuning": ("tuning", "tuning-rows"), "adam": ("adam",), "ablation": ("ablation",),
    "second-order": ("second-order",), "beyond": ("beyond",),
    "figure1": ("repeated",), "figure2": ("repeated",),
}  # fmt: skip
JUDGED = ("bars", "presets", "tuning", "adam")  # tables with verdicts


@dataclass(frozen=True)
class Context:
    """What tables and figures are made from, and where they go."""

    store: Store
    seeds: int
    epochs: int  # of the curves
    published: Path
    results: Path


def tables(names: Sequence[str], known: Context) -> list[Table]:
    """The tables of some experiments; those without runs are left out."""
    store, seeds = known.store, known.seeds
    found = repeated.tables(known.epochs, store, read_published(known.published)) if known.published.is_file() else []
    found += [*bars.tables(store, seeds), *tuning.tables(store, seeds), *targets.tables(store, seeds), *variants.tables(store)]
    found += beyond.tables(store) if "beyond" in names else []  # it evaluates networks
    wanted = {table for name in names for table in TABLES.get(name, ())}
    return [table for table in found if table.name in wanted]


def make(names: Sequence[str], known: Context, whole: bool, say: Callable[[str], None]) -> list[str]:
    """Write and print the tables, draw the figures, with ``whole`` put them together in report.md; the bars that are not met."""
    found = tables(names, known)
    write(found, known.results)
    for table in () if whole else found:
        say(f"\n{table.markdown()}")
    drawn: dict[str, list[Path]] = {}
    for name in [name for name in names if name in figures.FIGURES]:
        if not known.published.is_file():
            say(f"{known.published} is not there: table and figures beside the published curves stay as they are; give it with --published")
        drawn[name] = figures.draw(name, known.epochs, known.store, known.published, known.results)
        say("\n".join(f"{path}" for path in drawn[name]) or f"{name}: no runs yet")
    if whole:
        page = known.results / "report.md"
        held = [] if known.published.is_file() else repeated.kept(known.results)
        page.write_text(together([*held, *found], drawn), encoding="utf-8")
        say(f"{page}: {len(found)} tables")
    there = {table.name for table in found}
    return [f"no verdict: {name}: no runs yet" for name in names if name in JUDGED and name not in there] + fallen(found)


def together(found: Sequence[Table], drawn: dict[str, list[Path]]) -> str:
    """All of it on one page."""
    lines = ["# The paper reproduced, and passed", "", "Made by `python benchmarks/paper report` from run records alone.", ""]
    for name, paths in drawn.items():
        if paths:
            lines += [f"## {TITLES[name]}", "", CAPTION, "", *(f"![{path.stem}]({path.name})\n" for path in paths)]
    return "\n".join([*lines, *(table.markdown() for table in found)])


TITLES = {"figure1": "Figure 1: MNIST", "figure2": "Figure 2: CIFAR-10"}
CAPTION = (
    "Bands from the least to the largest of the seeds, lines at their mean; dashed: as published, ten trials. Training loss on the current "
    "data before the iteration. Time is that of the run phase without test evaluations, of runs with the same machine and as many beside "
    "them; bytes are reductions times the size of theta. Adam: best of 13 rates by accuracy after 30 epochs (MNIST in minibatches) "
    f"or 40 (the others), found with one seed, and drawn to more epochs than that. {READ}, as the published curves are; losses are of the "
    "iterates."
)


def fallen(found: Sequence[Table]) -> list[str]:
    """The bars that are not met, in words; one without a verdict, because runs are missing, is not met."""
    return [("no verdict: " if row["met"] is None else "NOT MET: ") + f"{table.title}: " + ", ".join(_row(row))
            for table in found for row in table.rows if "met" in row and row["met"] is not True]  # fmt: skip


def _row(row: Row) -> list[str]:
    """Which row it is."""
    found = [row["problem"], row.get("method"), f"N = {row['subdomains']}" if row.get("subdomains") else "", row.get("budget")]
    seeds = f"{row['runs']} seeds" if row["met"] is None and isinstance(row.get("runs"), int) else ""
    return [words for words in (*found, seeds) if words]
