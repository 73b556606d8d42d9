"""How far a run has come, and how it ended."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from apts_mpi.contracts import Status, StepInfo

if TYPE_CHECKING:
    from torch import Tensor

ENDS = (Status.TARGET_LOSS, Status.CONVERGED, Status.STATIONARY, Status.GRADIENT, Status.RADIUS)  # what was found at theta itself
MEAN = " (mean of the iterates)"  # behind a figure of a result that is one
NOTHING_LEFT = "nothing is left to do; a larger stop.epochs, or other limit, prolongs the run"
UNWANTED = "nothing was to be saved: there is no run.dir, checkpoints are off, or the method has none"
NUMERICAL, ENVIRONMENT, REQUEUE = 3, 4, 75  # exit codes; 75 is EX_TEMPFAIL of sysexits.h


@dataclass
class Progress:
    """What a run counts, over all its starts; of this rank, the rest is the same on all."""

    steps: list[StepInfo] = field(default_factory=list)  # one per outer iteration
    samples: int = 0  # gradient evaluations
    reductions: int = 0  # of n-vectors
    messages: int = 0  # of earlier starts
    bytes: int = 0  # of earlier starts
    seconds: float = 0.0  # of earlier starts, run phase
    accuracy: float = math.nan  # test set, per cent, last known
    test_loss: float = math.nan  # mean over the test set, last known in this start

    def tested(self, rows: Sequence[Sequence[float]]) -> None:
        """A test, from each rank's sum of losses, number of right predictions (nan if the targets are no labels) and samples."""
        loss, right, count = (sum(column) for column in zip(*rows, strict=True))
        self.test_loss, self.accuracy = loss / count, 100 * right / count

    def add(self, info: StepInfo) -> None:
        """One more outer iteration."""
        self.steps.append(info)
        self.samples += info.gradient_samples
        self.reductions += info.reductions


@dataclass(frozen=True)
class Result:
    """How a run ended; the same on all ranks."""

    status: Status
    theta: Tensor = field(repr=False)  # (n,), the final parameters
    steps: list[StepInfo] = field(repr=False)  # one per outer iteration, those before a resumption too
    accuracy: float  # per cent of the test set; nan without one
    loss: float  # training loss, last known
    passes: float  # gradient evaluations, in passes over the training set
    reductions: int  # n-vector reductions
    seconds: float
    directory: str  # of the run; empty if none was written
    unsaved: str = ""  # why the state at the end is in no checkpoint; empty if it is, or if none was wanted before a regular end
    test_loss: float = math.nan  # mean over the test set; nan without one

    @property
    def exit_code(self) -> int:
        """0 finished, 3 numerical failure, 75 stopped on request, with a checkpoint if they are on, 4 if it could not be written."""
        stopped = REQUEUE if self.unsaved in ("", UNWANTED) else ENVIRONMENT
        return {Status.NONFINITE: NUMERICAL, Status.INTERRUPTED: stopped}.get(self.status, 0)


def known_loss(info: StepInfo) -> float:
    """The loss after the step, or before it where the method does not evaluate it."""
    return info.loss if math.isnan(info.loss_new) else info.loss_new
