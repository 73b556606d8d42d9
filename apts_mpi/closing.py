"""What a run leaves behind and says at its end."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from apts_mpi import timing
from apts_mpi.assembly import Problem
from apts_mpi.config import Config
from apts_mpi.contracts import Communicator, Status
from apts_mpi.origin import go_on
from apts_mpi.outcome import MEAN, UNWANTED, Progress, Result
from apts_mpi.parallel.handshake import together
from apts_mpi.rundir import Completion
from apts_mpi.solver.build import outer_per_epoch, used_minibatches
from apts_mpi.timing import Timers

if TYPE_CHECKING:
    from torch import Tensor

    from apts_mpi.storage.records import RunDirectory


def loss_at(problem: Problem, comm: Communicator, theta: Tensor, k: int, config: Config) -> float:
    """f(theta; D) on the data that outer iteration ``k``, the last, used last; any theta. Every rank calls."""
    objective = problem.objective
    if not objective.selected:  # a finished run that was taken up again and had nothing left to do
        epoch, batch = divmod(k, outer_per_epoch(config, objective.batches))
        objective.select(epoch, used_minibatches(config, objective.batches, batch)[-1])
    shares = comm.gather([float(subdomain.owned(theta, None)) for subdomain in objective.subdomains])
    return math.fsum(share for row in shares for share in row)


def laps_of_all(comm: Communicator, timers: Timers, rows: list[list[float]]) -> dict[str, NDArray[np.float32]]:
    """Seconds of each iteration and rank, by the regions that any rank entered; empty but on rank 0. Every rank calls."""
    used = [line.region for line in timing.table(rows) if line.phase == timing.RUN]
    found = {region: comm.collect(np.array(timers.laps(region))) for region in used}
    return {region: np.stack(laps, axis=1) for region, laps in found.items() if laps is not None}


def store(
    directory: RunDirectory | None, comm: Communicator, problem: Problem, timers: Timers, rows: list[list[float]], result: Result,
    progress: Progress, batches: int, warn: Callable[[str], None],
) -> None:  # fmt: skip
    """The last files of the run directory, the completion record last of all; every rank calls. SetupError on all if the disk fails.

    A run that was interrupted gets none: it is not finished.
    """
    laps = laps_of_all(comm, timers, rows) if result.directory else {}

    def write() -> None:
        if directory is None:
            return
        if result.status is Status.INTERRUPTED:
            try:
                directory.leave(rows, laps)
            except OSError as error:  # the checkpoint holds all that matters
                warn(f"{error}; the records in the checkpoint are whole")
        else:
            named = {name: value.cpu().numpy() for name, value in problem.flat.views(result.theta).items()}
            directory.finish(completion(comm, problem, result, progress, batches), named, rows, laps)

    together(comm, write)


def completion(comm: Communicator, problem: Problem, result: Result, progress: Progress, batches: int) -> Completion:
    """The record that makes a run a finished one."""
    from apts_mpi.storage.records import digest

    done = len(result.steps)
    return Completion(
        status=result.status.value, iterations=done, epochs=done / batches, n_params=result.theta.numel(), subdomains=problem.subdomains,
        ranks=comm.size, loss=result.loss, accuracy=result.accuracy, passes=result.passes, reductions=result.reductions,
        messages=progress.messages, bytes=progress.bytes, seconds=result.seconds, theta_sha256=digest(result.theta.cpu().numpy()),
    )  # fmt: skip


def shown(
    result: Result, problem: Problem, comm: Communicator, rows: list[list[float]], since: int, saved: str, averaged: bool
) -> dict[str, object]:
    """The facts of a result, for people.

    Args:
        since: outer iterations before this start.
        saved: about checkpoints.
        averaged: the result is the mean of the iterates.
    """
    of_mean, last = MEAN if averaged else "", " on the last minibatch" if problem.objective.batches > 1 else ""
    loss = f"{result.loss:.4g}{last}{of_mean if result.status is not Status.INTERRUPTED else ''}"  # see Loop._finish
    tested = {} if math.isnan(result.test_loss) else {"test loss": f"{result.test_loss:.4g}{of_mean}"}
    tested |= {} if math.isnan(result.accuracy) else {"test accuracy": f"{result.accuracy:.2f} %{of_mean}"}
    facts: dict[str, object] = {
        "status": result.status.value, "training loss": loss, **tested,
        "outer iterations": len(result.steps), "evaluations": f"{result.passes:.1f} passes over the training set",
        "reductions": f"{result.reductions} vectors of {result.theta.numel():,} numbers", "time": f"{result.seconds:.1f} s",
    }  # fmt: skip
    facts |= {"checkpoints": saved} if saved else {}
    facts |= {"run": result.directory or "not stored"}
    known = problem.arithmetic
    total, recent = (
        known.total(*(sum(getattr(info, name) for info in steps) for name in ("gradient_samples", "value_samples")))
        for steps in (result.steps, result.steps[since:])
    )
    text = known.text(total, recent, comm.size, result.seconds, timing.table(rows))
    return facts | ({"arithmetic": text} if text else {})


def interrupted(result: Result, reasons: Sequence[str], in_memory: bool) -> dict[str, object]:
    """Who wanted the stop, and how to go on; ``reasons`` of all ranks, empty where there was none; ``in_memory``: tensors of a program."""
    named = [f"{reason} on rank {rank}" if len(reasons) > 1 else reason for rank, reason in enumerate(reasons) if reason]
    facts: dict[str, object] = {"stopped by": ", ".join(named[:4]) + (" and others" if len(named) > 4 else "")}
    if result.unsaved:
        return facts | {"not saved": result.unsaved + ("" if result.unsaved == UNWANTED else "; an earlier checkpoint may be there")}
    return facts | {"go on with": go_on(result.directory, len(reasons), in_memory)}
