"""From the run directories of a study to its points."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apts_mpi.contracts import Status
from apts_mpi.regular import read_summed
from apts_mpi.rundir import Run as Record
from apts_mpi.rundir import read_run
from apts_mpi.study.attempt import Attempt, failed, read_attempt
from apts_mpi.study.definition import Method, Study, StudyError
from apts_mpi.study.execute import WANDER
from apts_mpi.study.plan import Run
from apts_mpi.study.points import CURVES, Point, Points
from apts_mpi.timing import IO, RUN, TEST

WARM_UP = 3  # outer iterations whose seconds are not looked at, where there are enough
THINNED = 80  # points of a curve, about
QUOTED = (
    "git_commit", "source_sha256", "package_version", "versions", "mpi_library", "system", "cpu", "hosts", "devices", "threads_per_rank",
    "data_fingerprint", "environment", "started_utc", "peak_flops",
)  # fmt: skip

Numbers = NDArray[np.float64]


def collect(study: Study, runs: Sequence[Run]) -> Points:
    """Every run that is done, and the names of those that failed."""
    ended = {run.id: read_run(run.folder) for run in runs if run.done}
    bad = [name for name, record in ended.items() if record.completion and record.completion.status == Status.NONFINITE.value]
    done = [run for run in runs if run.id in ended and run.id not in bad]
    attempts = {run.id: read_attempt(run) for run in done}
    usual = usual_bandwidth([a for a in attempts.values() if a])
    points = tuple(_point(run, ended[run.id], attempts[run.id], usual) for run in done)
    wrong = tuple(run.id for run in runs if run.id not in ended and failed(run))
    wrong += tuple(f"{name} (diverged)" for name in bad)
    tuning = {method.name: read_tuning(study, method) for method in study.methods if method.tuning}
    title, text = study.title or study.name, study.path.read_text(encoding="utf-8")
    return Points(study.name, title, study.threads, study.repetitions, study.target_accuracy, len(runs), wrong, points, text, tuning)


def usual_bandwidth(attempts: Sequence[Attempt]) -> dict[str, float]:
    """Median copy bandwidth by host."""
    hosts = {a.host for a in attempts}
    return {host: median(a.copy_bandwidth for a in attempts if a.host == host) for host in hosts}


def read_tuning(study: Study, method: Method) -> Mapping[str, Any]:
    """Cost and outcome of a search that ``apts-mpi tune`` made; StudyError names the file."""
    path = study.path.parent / method.tuning
    try:
        tree = read_summed(path)
        return {"best_lr": tree["best_lr"], "runs": len(tree["runs"]), **tree["cost"]}
    except OSError as error:
        raise StudyError(f"method {method.name!r}: tuning {path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise StudyError(f"method {method.name!r}: {path} was not written by apts-mpi tune") from None


def _point(run: Run, record: Record, attempt: Attempt | None, usual: Mapping[str, float]) -> Point:
    done, columns, facts = record.completion, record.columns, record.provenance
    assert done is not None
    seconds = iteration_seconds(columns)
    low, middle, high = median_interval(looked_at(seconds))
    samples = round(float(columns["gradient_samples"].sum()) / done.passes) if done.passes else 0
    elapsed = np.cumsum(seconds)
    busy = attempt is not None and attempt.copy_bandwidth < (1 - WANDER) * usual[attempt.host]
    return Point(
        run=run.id, method=run.method.name, kind=Path(run.method.program).stem or run.config.method, network=run.network.name,
        scalings=run.scalings, ranks=run.ranks, nodes=run.nodes, subdomains=done.subdomains, per_rank=run.per_rank, samples=samples,
        batch=run.config.data.batch or samples, seed=run.seed, repetition=run.repetition, n_params=done.n_params,
        oversubscribed=attempt is not None and attempt.oversubscribed, noisy=busy, status=done.status, iterations=done.iterations,
        iteration_seconds=middle, iteration_low=low, iteration_high=high, run_seconds=float(elapsed[-1]), passes=done.passes,
        value_passes=float(columns["value_samples"].sum()) / samples if samples else math.nan, reductions=done.reductions,
        messages=done.messages, bytes=done.bytes, loss=done.loss, accuracy=done.accuracy,
        local_iters=float(np.median(looked_at(columns["local_iters"]))) / done.subdomains, phases=phases(record),
        curve=curve(columns, elapsed),
        flops_per_gradient=_number(facts.get("flops_per_gradient")), machine={key: facts[key] for key in QUOTED if key in facts},
        **_target(run, columns, elapsed),
    )  # fmt: skip


def iteration_seconds(columns: Mapping[str, NDArray[Any]]) -> Numbers:
    """Seconds of every outer iteration (iterations,), without evaluating the test set and writing records.

    Rank 0's clock: an iteration holds at least one sum, which keeps the ranks in step.
    """
    left_out = [f"seconds_{region.replace(' ', '_')}" for region in (TEST, IO)]
    parts = [column for name, column in columns.items() if name.startswith("seconds_") and name not in left_out]
    total: Numbers = np.sum(parts, axis=0, dtype=np.float64)
    return total


def looked_at(values: NDArray[Any]) -> NDArray[Any]:
    """Those of the iterations behind the warm-up, of short runs all."""
    return values[WARM_UP:] if len(values) > 2 * WARM_UP else values


def median_interval(values: Numbers) -> tuple[float, float, float]:
    """(low, median, high): the 95 % interval of a median from order statistics, the range for few values."""
    ordered, count = np.sort(values), len(values)
    reach = 0.98 * math.sqrt(count)  # 1.96 times the standard deviation of a fair binomial
    low, high = max(0, math.floor(count / 2 - reach)), min(count - 1, math.ceil(count / 2 + reach))
    return float(ordered[low]), float(np.median(ordered)), float(ordered[high])


def phases(record: Record) -> dict[str, float]:
    """Seconds of an outer iteration by region, mean over ranks, run phase alone."""
    assert record.completion is not None
    return {line.region: line.mean / record.completion.iterations for line in record.times if line.phase == RUN}


def curve(columns: Mapping[str, NDArray[Any]], elapsed: Numbers) -> dict[str, list[float]]:
    """Progress against work, communication and time; every known accuracy and about ``THINNED`` iterations are kept."""
    known = np.isfinite(columns["accuracy"].astype(np.float64))
    kept = known | (np.arange(len(known)) % max(1, len(known) // THINNED) == 0)
    after = columns["loss_new"].astype(np.float64)
    known_loss = np.where(np.isfinite(after), after, columns["loss"])  # before the step where the method does not look again
    full = {name: {"seconds": elapsed, "loss": known_loss}.get(name, columns.get(name)) for name in CURVES}
    return {name: [float(f"{value:.6g}") for value in np.asarray(values, np.float64)[kept]] for name, values in full.items()}


def _target(run: Run, columns: Mapping[str, NDArray[Any]], elapsed: Numbers) -> dict[str, float]:
    """What it took until the target accuracy was seen; nan if it was not."""
    names = ("iterations", "seconds", "passes", "reductions", "bytes")
    reached = np.flatnonzero(columns["accuracy"].astype(np.float64) >= run.config.stop.target_accuracy)
    if not len(reached):
        return {f"target_{name}": math.nan for name in names}
    k = int(reached[0])
    found = (k + 1, elapsed[k], columns["passes"][k], columns["reductions_total"][k], columns["bytes"][k])
    return {f"target_{name}": float(value) for name, value in zip(names, found, strict=True)}


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)
