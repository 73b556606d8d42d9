"""Writes down how the tests of the fault list ended: a file of JSON lines for each process, which table.py merges.

A test begins with one entry and ends with another: what begins and never ends has hung or killed its process.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def mpi_of(python: str) -> str:
    """``mpich`` or ``openmpi``: whose mpiexec stands beside an interpreter, else in the PATH; empty without one."""
    found = shutil.which("mpiexec", path=os.pathsep.join([str(Path(python).parent), os.environ.get("PATH", "")]))
    if not found:
        return ""
    told = subprocess.run([found, "--version"], capture_output=True, text=True, timeout=20).stdout
    return "openmpi" if "Open" in told or "prterun" in told.lower() else "mpich"


def first_of(names: tuple[str, ...]) -> int:
    """The first of some variables that is set, else 0."""
    return next((int(os.environ[name]) for name in names if os.environ.get(name, "").isdigit()), 0)


class Recorder:
    """The plugin: ``folder`` gets what the marked tests of this process do."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._rank = first_of(("PMI_RANK", "OMPI_COMM_WORLD_RANK"))
        self._common = {
            "mpi": mpi_of(sys.executable), "rank": self._rank, "ranks": first_of(("PMI_SIZE", "OMPI_COMM_WORLD_SIZE")),
        }  # fmt: skip
        self._path = folder / f"{os.getpid()}-{self._rank}-{self._common['mpi']}.jsonl"
        self._lines: dict[str, list[int]] = {}
        self._seconds: dict[str, float] = {}
        self._outcome: dict[str, tuple[str, str]] = {}

    def _write(self, test: str, **entry: Any) -> None:
        with open(self._path, "a") as file:
            file.write(json.dumps({"test": test, "lines": self._lines[test], **self._common, **entry}) + "\n")

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        lines = sorted({line for mark in item.iter_markers("fault") for line in mark.args})
        if lines:
            self._lines[item.nodeid] = lines
            self._write(item.nodeid, outcome="begun")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        test = report.nodeid
        if test not in self._lines:
            return
        if report.when == "call":  # a test of many faults tells how long the slowest took
            self._seconds[test] = float(dict(report.user_properties).get("slowest_fault_s", report.duration))
        if test not in self._outcome or report.outcome != "passed":
            reason = str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else ""
            self._outcome[test] = (report.outcome, reason)
        if report.when == "teardown":
            outcome, reason = self._outcome.pop(test)
            self._write(test, outcome=outcome, reason=reason, seconds=round(self._seconds.pop(test, 0.0), 3))
