"""A table with its rows in JSON and in Markdown."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from paper.curves import Curve, facts_of

Row = dict[str, Any]
SEVERAL = "seeds of several sources"
PROCESSORS = "several kinds of processor"


@dataclass(frozen=True)
class Table:
    """``columns``: heading by key of the rows, and how to write the value."""

    name: str
    title: str
    note: str  # the rule by which it was made
    columns: dict[str, tuple[str, str]]
    rows: list[Row]
    curves: Sequence[Curve] = field(default=(), repr=False)  # all runs that are in it

    def markdown(self) -> str:
        """Heading, rule and rows."""
        lines = [f"## {self.title}", "", self.note, ""] if self.note else [f"## {self.title}", ""]
        lines += ["| " + " | ".join(heading for heading, _ in self.columns.values()) + " |", "|" + "---|" * len(self.columns)]
        lines += ["| " + " | ".join(cell(row.get(key), style) for key, (_, style) in self.columns.items()) + " |" for row in self.rows]
        return "\n".join(lines) + "\n"

    def plain(self) -> dict[str, Any]:
        """For JSON: every number, and the sources, versions and machines of the runs."""
        return {"table": self.name, "title": self.title, "rule": self.note, "made_by": facts_of(self.curves), "rows": bare(self.rows)}


def cell(value: Any, style: str) -> str:
    """A value as Markdown; what does not exist is a dash."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "NO"
    return str(value) if isinstance(value, str) or not style else format(value, style)


def bare(value: Any) -> Any:
    """``value`` as JSON can say it: rounded, and null for numbers that are not finite."""
    if isinstance(value, dict):
        return {name: bare(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [bare(one) for one in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def write(tables: Iterable[Table], folder: Path) -> None:
    """FOLDER/NAME.json of each table."""
    folder.mkdir(parents=True, exist_ok=True)
    for table in tables:
        (folder / f"{table.name}.json").write_text(json.dumps(table.plain(), indent=1) + "\n", encoding="utf-8")


def mean(values: Iterable[float | None]) -> float:
    """The mean; nan if there is nothing, or something is missing."""
    known = [math.nan if value is None else value for value in values]
    return fmean(known) if known else math.nan


def ranks(curves: Iterable[Curve]) -> str:
    """How many ranks made the runs of a row."""
    return ", ".join(sorted({str(curve.facts.get("ranks") or "?") for curve in curves}))


def timed(curves: Iterable[Curve], seconds: float) -> float:
    """Seconds of runs on equal machines that each had to itself; nan if one had not, or nobody noted it."""
    facts = [curve.facts for curve in curves]
    alike = all(len({str(fact.get(name)) for fact in facts}) <= 1 for name in ("cpu", "devices", "ranks"))
    return seconds if alike and all(fact.get("jobs") == 1 for fact in facts) else math.nan


def mixed(curves: Iterable[Curve]) -> bool:
    """Whether several sources made them, so that their mean is that of no method."""
    return len({curve.facts.get("source_sha256") for curve in curves}) > 1


def marked(row: Row, label: str, curves: Sequence[Curve]) -> Row:
    """A row of these runs; of several sources it says so and gets no verdict, of several processors, which round otherwise, it says so."""
    kinds = {str(curve.facts.get("cpu")).rpartition(", ")[0] for curve in curves}  # without the number of CPUs
    marks = [SEVERAL] * mixed(curves) + [PROCESSORS] * (len(kinds) > 1)
    found = row | {"mixed": mixed(curves)} | ({label: f"{row[label]} ({'; '.join(marks)})"} if marks else {})
    return found | ({"met": None} if found["mixed"] and "met" in row else {})


def spread(values: Sequence[float], style: str = ".2f") -> str:
    """mean [min, max]; a dash for nothing."""
    if not values or not all(map(math.isfinite, values)):
        return "-"
    return f"{fmean(values):{style}} [{min(values):{style}}, {max(values):{style}}]"
