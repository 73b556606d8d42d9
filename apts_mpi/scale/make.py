"""Calibrate the machine and make the runs of a study that are missing."""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from apts_mpi.presets import preset
from apts_mpi.scale.facts import CALIBRATION, Facts, facts
from apts_mpi.study.attempt import AGAIN, failed
from apts_mpi.study.definition import Study
from apts_mpi.study.execute import Executor, Say, check_cores, crowded, start_words
from apts_mpi.study.plan import Run


def select(runs: Sequence[Run], nodes: int | None, scaling: str | None, repetition: int | None) -> list[Run]:
    """Those of a number of nodes, a scaling, a repetition; None: all."""
    return [
        run for run in runs
        if (nodes is None or run.nodes == nodes) and (scaling is None or scaling in run.scalings)
        and (repetition is None or run.repetition == repetition)
    ]  # fmt: skip


def calibrations(study: Study, runs: Sequence[Run]) -> dict[tuple[str, int], Path]:
    """(bench, ranks) -> the file its document belongs in, for the rank counts of ``runs``."""
    counts = sorted({run.ranks for run in runs})
    wanted = [("compute", ranks) for ranks in counts] + [("reduce", ranks) for ranks in counts if ranks > 1]
    return {(name, ranks): study.home / CALIBRATION / f"{name}-P{ranks}.json" for name, ranks in wanted}


def calibrate(study: Study, runs: Sequence[Run], known: Facts, executor: Executor, say: Say) -> None:
    """Make the calibrations that are missing; one that fails is told, and leaves the report without the cost model."""
    config = runs[0].config
    model, pairs = config.model, max(preset("lsr1").pairs, *(run.config.pairs for run in runs))  # whatif counts on those of lsr1
    options = ["--local.memory", str(pairs), "--global_step.memory", str(pairs), "--baseline.bucket", str(config.baseline.bucket)]
    options += ["--model.name", model.name, "--model.widths", ",".join(map(str, model.widths)), "--model.loss", model.loss]
    options += ["--model.dtype", model.dtype, "--shape", ",".join(map(str, known.sample_shape)), "--outputs", str(known.outputs)]
    for (name, ranks), path in calibrations(study, runs).items():
        words = [sys.executable, "-m", "apts_mpi", "bench", name, "--threads", str(study.threads), "--out", str(path)]
        words += (options if name == "compute" else []) + (["--oversubscribe"] if crowded(study, ranks) else [])
        asked, log = path.with_suffix(".asked"), path.with_suffix(".log")
        if path.is_file() and asked.is_file() and asked.read_text(encoding="utf-8") == shlex.join(words[3:]):
            continue  # measured for this model and these threads
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        say(f"calibration: bench {name} on {ranks} rank{'s' * (ranks > 1)}")
        code, _ = executor.run([*start_words(ranks, study.nodes(ranks), executor.launcher), *words], ranks, log, signal.SIGTERM)
        if executor.ending:  # a bench is short of what it measures: it is made again
            return
        asked.write_text(shlex.join(words[3:]), encoding="utf-8")
        if code or not path.is_file():
            say(f"WARNING: bench {name} ended with exit code {code}, see {log}: there will be no cost model")


def run_study(study: Study, runs: Sequence[Run], launcher: str, calibrated: bool, say: Say) -> int:
    """Calibrate and make the missing runs; 0 if all are on disk then, 3 if some failed, 75 if it was told to end before.

    SIGUSR1 and SIGTERM tell it so: the run under way stops after its iteration and is left. SIGHUP ends the run at once.
    """
    signal.signal(signal.SIGHUP, lambda number, frame: sys.exit(128 + number))
    check_cores(study, runs)
    known = facts(study, runs)
    executor = Executor(study, launcher, say)
    for number in (signal.SIGUSR1, signal.SIGTERM):
        signal.signal(number, lambda number, frame: executor.warn())
    if calibrated:
        calibrate(study, runs, known, executor, say)
    left = executor.make(runs)
    if left and executor.ending:
        say(f"told to end: {len(left)} of {len(runs)} runs are left; the same command goes on with them")
        return AGAIN
    if left:
        say(f"{len(left)} of {len(runs)} runs failed; the same command tries them again")
    else:
        say(f"all {len(runs)} runs are there; next: apts-mpi scale report {study.path}")
    return 3 if left else 0


def state(run: Run) -> str:
    """done, failed or missing."""
    if run.done:
        return "done"
    return "failed" if failed(run) else "missing"
