"""What a study will cost, before it starts: from finished runs, from the calibrated model, or on an assumed machine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

from apts_mpi.scale.facts import CALIBRATION, REPORT, Facts, facts
from apts_mpi.study import describe, submit
from apts_mpi.study.attempt import read_attempt
from apts_mpi.study.cost import Prediction, predict
from apts_mpi.study.definition import Study
from apts_mpi.study.describe import Duration
from apts_mpi.study.machine import Machine, read_machine
from apts_mpi.study.plan import Run, plan
from apts_mpi.study.shares import batches
from apts_mpi.study.work import count
from apts_mpi.systems import find

START_UP = 3.0  # s that a run takes to start and to end
ASSUMED_FLOPS, ASSUMED_BANDWIDTH = 20e9, 1e9  # of a core and of a sum, where nothing was measured


def predicted(run: Run, machine: Machine, known: Facts, local_iters: float | None = None) -> Prediction | None:
    """An outer iteration of a run by the cost model; None for programs, which it does not know."""
    if run.method.program:
        return None
    return predict(machine, run.config, known.n_params, run.ranks, run.config.data.limit or known.samples, local_iters)


def at_most(run: Run, known: Facts, machine: Machine | None) -> float:
    """Seconds of a run that does not reach its target before its last epoch."""
    from apts_mpi.solver.build import outer_per_epoch

    config, samples = run.config, run.config.data.limit or known.samples
    limits = [config.stop.epochs * outer_per_epoch(config, batches(config, samples)), config.stop.iterations]
    iterations = min((limit for limit in limits if limit), default=0)
    found = predicted(run, machine, known) if machine else None
    if found is None:
        work = count(config, known.n_params, run.ranks, samples)
        arithmetic = 2 * known.n_params * (3 * work.gradient_samples + work.value_samples)
        each = arithmetic / (ASSUMED_FLOPS * config.run.threads) + sum(message.bytes for message in work.messages) / ASSUMED_BANDWIDTH
    else:
        each = found.seconds
    return START_UP + min(each * iterations if iterations else math.inf, config.stop.wall_time)


def estimates(study: Study, runs: Sequence[Run], known: Facts) -> list[Duration]:
    """Seconds of every run: as its like took, else by the cost model, else on an assumed machine."""
    machine = read_machine(study.home / CALIBRATION)
    measured: dict[tuple[object, ...], list[float]] = {}
    for run in runs:
        attempt = read_attempt(run)
        if attempt is not None and not attempt.code:
            measured.setdefault(run.case, []).append(attempt.seconds)
    found = []
    for run in runs:
        if run.case in measured:
            found.append(Duration(median(measured[run.case]), "measured"))
        else:
            modelled = machine is not None and not run.method.program
            found.append(Duration(at_most(run, known, machine), "model" if modelled else "assumed"))
    return found


def plan_study(study: Study) -> list[str]:
    """What ``scale plan`` prints."""
    runs = plan(study)
    return list(describe.planned(study, runs, estimates(study, runs, facts(study, runs))))


def submit_study(study: Study, system: str, account: str, partition: str, dry_run: bool) -> list[str]:
    """Submit the runs that are missing; what ``scale submit`` prints."""
    runs = plan(study)
    left = [run for run in runs if not run.done]
    known = facts(study, runs)
    seconds: dict[int, float] = {}
    for run, each in zip(runs, estimates(study, runs, known), strict=True):
        if run.repetition == 0:
            seconds[run.nodes] = seconds.get(run.nodes, 0.0) + each.seconds
    made = submit.scripts(study, left, find(system), seconds, account, partition)
    numbers = submit.submit(made, study.home, dry_run)
    if dry_run:
        return numbers
    watched = f"apts-mpi scale status {study.path} says how far it is; the report will be in {study.home / REPORT}"
    return [f"{len(left)} runs in jobs {' '.join(numbers[:-1])}, the report in job {numbers[-1]}", watched]
