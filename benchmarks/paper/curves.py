"""Runs as the tables and pictures read them, and how they are read from run directories."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apts_mpi.contracts import Status
from apts_mpi.rundir import Run, read_run
from paper.cases import Case
from paper.limits import Limits, Used, first_at

Numbers = NDArray[np.float64]
LIMITS = (Status.EPOCHS, Status.ITERATIONS, Status.SPENT, Status.WALL_TIME, Status.INTERRUPTED)
LIMITED = {*(status.value for status in LIMITS), ""}
FACTS = ("git_commit", "source_sha256", "versions", "mpi_library", "cpu", "devices", "ranks", "threads_per_rank", "data_fingerprint")
SEEDS = 1000  # from one seed to the next, as in the paper


@dataclass(frozen=True)
class Curve:
    """One run, iteration by iteration."""

    seed: int
    used: Used
    values: Numbers  # losses alone, in passes over the training set
    bytes: Numbers  # reductions times the size of theta
    seconds: Numbers  # of the run phase, without those of test evaluations
    loss: Numbers  # training loss on the current data, before each iteration; nan where it is not known
    loss_end: float  # after the last one; nan: not evaluated
    accuracy: Numbers  # test set, per cent, after the iteration; nan where it was not evaluated
    farthest: float  # summed step over its radius, the largest: eq. (5) wants 1 at most; nan: has no radius
    n_params: int
    wall: float  # seconds of the run phase, all of it
    status: str  # how it ended; empty: it did not
    facts: dict[str, Any] = field(repr=False, default_factory=dict)
    samples: float = 0.0  # of the training set; 0: not known
    worth: dict[str, float] | None = None  # what the parameters at its end are worth, as a record says; None: not from a record

    @property
    def whole(self) -> bool:
        """Whether it ended because of what it found, and not because of a limit."""
        return self.status not in LIMITED

    def enough(self, until: Limits) -> bool:
        """Whether nothing is missing up to ``until``."""
        return self.whole or (self.status != "" and until.spent(self.used))

    def at(self, count: int) -> dict[str, float]:
        """Figures after ``count`` outer iterations; accuracy: the last known one."""
        index = count - 1
        known = self.accuracy[:count][np.isfinite(self.accuracy[:count])]
        return {
            "accuracy": float(known[-1]) if len(known) else math.nan, "iterations": float(count), "epochs": float(self.used.epochs[index]),
            "passes": float(self.used.passes[index]), "values": float(self.values[index]), "reductions": float(self.used.reductions[index]),
            "bytes": float(self.bytes[index]), "seconds": float(self.seconds[index]),
        }  # fmt: skip

    def head(self, until: Limits) -> Curve:
        """The same run as if it had ended at the last iteration within ``until``."""
        count = until.within(self.used)
        if count == len(self.accuracy):
            return self
        used = Used(*(getattr(self.used, entry.name)[:count] for entry in fields(Used)))
        short = {name: getattr(self, name)[:count] for name in ("values", "bytes", "seconds", "loss", "accuracy")}
        return replace(self, used=used, loss_end=float(self.loss[count]), **short)

    def cut(self, until: Limits) -> dict[str, float]:
        """Figures at the last iteration within ``until``; empty if there is none."""
        count = until.within(self.used)
        return self.at(count) if count else {}

    def reached(self, target: float) -> dict[str, float]:
        """Figures at the first iteration whose test accuracy is the target or better; empty if there is none."""
        count = first_at(self.accuracy, target)
        return self.at(count) if count else {}

    def progress(self, across: str) -> Numbers:
        """epochs, passes, reductions, bytes, seconds or iterations, after each iteration."""
        found: Numbers = getattr(self.used if hasattr(self.used, across) else self, across)
        return found

    def losses(self, across: str) -> tuple[Numbers, Numbers]:
        """Where and how large the training loss was: a loss belongs to the point before its iteration."""
        x = np.concatenate([[0.0], self.progress(across)])
        y = np.append(self.loss, self.loss_end)
        known = np.isfinite(y)
        return x[known], y[known]

    def accuracies(self, across: str) -> tuple[Numbers, Numbers]:
        """Where and how large the test accuracy was."""
        known = np.isfinite(self.accuracy)
        return self.progress(across)[known], self.accuracy[known]


def of_run(run: Run) -> Curve:
    """The curve of a run directory; ValueError if it has no iteration on record."""
    columns = {name: column.astype(np.float64) for name, column in run.columns.items() if column.dtype.kind != "U"}
    if not len(columns.get("epoch", ())):
        raise ValueError(f"{run.path} has no iteration on record")
    n, samples = int(run.provenance["n_params"]), _samples(columns)
    reductions = np.cumsum(columns["reductions"])
    with np.errstate(invalid="ignore", divide="ignore"):  # baselines have no radius
        ratio = columns["step_norm"] / columns["radius"]
    size = 8 if 'dtype = "float64"' in run.config else 4
    return Curve(
        int(run.provenance["seed"]), Used(columns["epoch"], columns["passes"], reductions), np.cumsum(columns["value_samples"]) / samples,
        reductions * n * size, columns["time"] - np.cumsum(columns["seconds_test"]), columns["loss"], float(columns["loss_new"][-1]),
        columns["accuracy"], float(np.nanmax(ratio)) if np.isfinite(ratio).any() else math.nan, n,
        float(columns["time"][-1]),
        run.completion.status if run.completion else "", {name: run.provenance.get(name) for name in FACTS}, samples,
    )  # fmt: skip


def _samples(columns: dict[str, Numbers]) -> float:
    """Size of the training set, which the records have as a quotient alone."""
    return float(columns["gradient_samples"].sum() / columns["passes"][-1])


def read_curve(folder: Path) -> Curve | None:
    """The curve of the run in ``folder``; None if there is none, or nothing on record."""
    try:
        curve = of_run(read_run(folder))
    except (FileNotFoundError, ValueError):
        return None
    return replace(curve, facts={**curve.facts, "jobs": read_json(jobs_file(folder)).get("jobs") or None})


def jobs_file(folder: Path) -> Path:
    """Beside a run's folder, so that no start moves it: how many runs were made side by side."""
    return folder.with_name(f"{folder.name}.json")


def read_json(path: Path) -> dict[str, Any]:
    """What a JSON file says; nothing if it is not there, or says something else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def folder_of(runs: Path, case: Case, seed: int) -> Path:
    """Where a run lies."""
    return runs / case.name / f"seed-{seed}"


def seeds_of(case: Case, count: int) -> list[int]:
    """0, 1000, 2000, ..."""
    return [SEEDS * number for number in range(min(count, case.seeds or count))]


def facts_of(curves: Iterable[Curve]) -> list[dict[str, Any]]:
    """The distinct origins of some runs."""
    found: list[dict[str, Any]] = []
    for curve in curves:
        if curve.facts not in found:
            found.append(curve.facts)
    found = [{name: dict(sorted(fact.items())) if isinstance(fact, dict) else fact for name, fact in facts.items()} for facts in found]
    return found
