"""Merge what recording.py wrote into the table of docs/reliability.md, and say how many lines of the fault list are shown.

    python tests/faults/table.py FOLDER [--write | --check]

A line is shown if a test of it passed where the line says: at so many ranks, under every MPI that was used where ranks matter,
and none of its tests failed. --write puts the table into the page; --check says where the page tells of other tests.
Ends with status 1 if a line that can be run here is not shown, if something hung, or if the page lacks a line.
"""

from __future__ import annotations

import json
import re
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PAGE = HERE.parents[1] / "docs" / "reliability.md"
BEGIN, END = "<!-- the table: written by tests/faults/run.sh --write -->", "<!-- end of the table -->"
LIMIT = 10.0  # seconds that a fault may take
LAUNCHING = ("launch/", "faults/", "campaigns/")  # tests that start as many ranks as they need
NAMES = {"mpich": "MPICH", "openmpi": "Open MPI"}


@dataclass
class Line:
    """One line of the list and what became of its tests."""

    number: int
    section: str
    what: str
    where: str
    both: bool = False
    simulated: bool = False
    tests: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # function -> its entries, parameters and ranks together

    @property
    def ranks(self) -> int:
        """How many ranks it needs; 0: one process."""
        return int(self.where[0]) if self.where.endswith("r") else 0

    def shown(self, mpi: str) -> bool:
        """By a test that passed in the right place under ``mpi``, and no test of it failed there."""
        entries = [entry for found in self.tests.values() for entry in found if entry["mpi"] == mpi]
        if any(entry["outcome"] in ("failed", "begun") for entry in entries):
            return False
        return any(entry["outcome"] == "passed" and self._fits(entry) for entry in entries)

    def _fits(self, entry: dict[str, Any]) -> bool:
        short = entry["test"].removeprefix("tests/")
        if self.where == "slurm":
            return short.startswith("slurm/")
        return not self.ranks or entry["ranks"] == self.ranks or short.startswith(LAUNCHING)

    @property
    def seconds(self) -> float:
        return max((entry.get("seconds", 0.0) for found in self.tests.values() for entry in found), default=0.0)


def read_lines() -> dict[int, Line]:
    """lines.toml."""
    content = tomllib.loads((HERE / "lines.toml").read_text())
    return {int(key): Line(int(key), section, **value) for section, part in content.items() for key, value in part.items()}


def read_entries(folder: Path) -> list[dict[str, Any]]:
    """How every run of every marked test ended; "begun" if it never did."""
    entries = []
    for path in sorted(folder.glob("*.jsonl")):
        last: dict[str, dict[str, Any]] = {}
        for text in path.read_text().splitlines():
            entry = json.loads(text)
            last[entry["test"]] = entry
        entries += last.values()
    return entries


def function_of(test: str) -> str:
    """``tests/solver/test_apts.py::test_x[a-1]`` as ``solver/test_apts.py::test_x``."""
    return test.removeprefix("tests/").split("[")[0]


def merge(lines: dict[int, Line], entries: list[dict[str, Any]]) -> None:
    """Give each line its tests; ValueError for a mark with a number that is no line."""
    for entry in entries:
        for number in entry["lines"]:
            if number not in lines:
                raise ValueError(f"{entry['test']} is marked as fault {number}, which lines.toml does not have")
            lines[number].tests.setdefault(function_of(entry["test"]), []).append(entry)


def verdicts(line: Line, mpis: list[str], slurm: bool) -> list[str]:
    """The table's cells for both MPIs."""
    if line.where == "slurm" and not slurm:
        return ["needs Slurm"] * len(NAMES)
    word = "simulated" if line.simulated else "yes"
    if not line.both:
        return [word if any(line.shown(mpi) for mpi in mpis) else "NO", "-"]
    return [(word if line.shown(mpi) else "NO") if mpi in mpis else "not run" for mpi in NAMES]


def table(lines: dict[int, Line], mpis: list[str], slurm: bool) -> Iterator[str]:
    """The rows in Markdown; times are whole seconds, rounded up."""
    yield "| | what happens | where | shown by | MPICH | Open MPI | slowest, s |"
    yield "|---|---|---|---|---|---|---|"
    for line in lines.values():
        tests = "<br>".join(f"`{name}`" for name in sorted(line.tests))
        cells = [str(line.number), line.what, line.where, tests, *verdicts(line, mpis, slurm), f"{-(-line.seconds // 1):.0f}"]
        yield f"| {' | '.join(cells)} |"


def stored(page: str) -> dict[int, set[str]]:
    """Lines and their tests as the page has them."""
    inner = page.split(BEGIN)[1].split(END)[0]
    rows = re.findall(r"^\| (\d+) \|(.*)$", inner, re.MULTILINE)
    return {int(number): set(re.findall(r"`([^`]+::[^`]+)`", rest)) for number, rest in rows}


def differences(lines: dict[int, Line], page: str, slurm: bool) -> list[str]:
    """Where the page tells of other tests than those that ran."""
    known, found = stored(page), []
    for line in lines.values():
        told = {name for name in known.get(line.number, set()) if slurm or not name.startswith("slurm/")}
        for name in sorted(told ^ set(line.tests)):
            found.append(f"line {line.number}: {'the page alone has' if name in told else 'the page lacks'} {name}")
    return found


def main(arguments: list[str]) -> int:
    folder, action = Path(arguments[0]), arguments[1] if len(arguments) > 1 else ""
    lines, entries = read_lines(), read_entries(folder)
    merge(lines, entries)
    mpis = [mpi for mpi in NAMES if any(entry["mpi"] == mpi for entry in entries)]
    slurm = any(entry["test"].startswith("tests/slurm/") and entry["outcome"] == "passed" for entry in entries)
    missing = [line for line in lines.values() if "NO" in verdicts(line, mpis, slurm)]
    hangs = sorted({entry["test"] for entry in entries if entry["outcome"] == "begun"})
    slow = sorted({function_of(entry["test"]) for entry in entries if entry.get("seconds", 0.0) > LIMIT})
    wrong = [f"line {line.number} is not shown: {line.what}" for line in missing] + [f"hangs: {test}" for test in hangs]
    page = PAGE.read_text()
    if action == "--write":
        head, rest = page.split(BEGIN)
        PAGE.write_text("\n".join([head + BEGIN, *table(lines, mpis, slurm), END]) + rest.split(END)[1])
    older = differences(lines, page, slurm) if action == "--check" else []
    wrong += [f"the page lacks line {number}" for number in lines if action == "--check" and number not in stored(page)]
    if older:
        print(f"the page is older than these tests; tests/faults/run.sh --write makes it again: {'; '.join(older)}")
    for text in [*wrong, *(f"longer than {LIMIT:g} s: {name}" for name in slow)]:
        print(text)
    left_out = [line.number for line in lines.values() if line.where == "slurm" and not slurm]
    simulated = sum(line.simulated for line in lines.values())
    shown = len(lines) - len(missing) - len(left_out)
    notes = f"{simulated} simulated without a GPU" + (f", {len(left_out)} left out without Slurm" if left_out else "")
    slowest = max((line.seconds for line in lines.values()), default=0.0)
    print(f"{shown} of {len(lines)} lines shown ({notes}; {' and '.join(NAMES[mpi] for mpi in mpis)}), "
          f"{len(hangs)} hangs, slowest {slowest:.1f} s")  # fmt: skip
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
