"""Whether an outer iteration of a trust-region method has anything to do, and whether another one has."""

from __future__ import annotations

import math
from collections.abc import Sequence

from apts_mpi.config import Config
from apts_mpi.contracts import Status
from apts_mpi.solver.shared_loss import Point
from apts_mpi.solver.trust_region import Verdict


class Ending:
    """The statuses that APTS and the global trust region share.

    In full batch nothing changes where no step can be made, so the run ends there. In ``batches`` > 1 minibatches the next one
    may be better: iterations without a number in them are left out, up to ``stop.nonfinite`` in a row.
    """

    def __init__(self, config: Config, batches: int) -> None:
        self._stop, self._smallest, self._batches = config.stop, config.trust_region.radius_min, batches
        self.bad = 0  # iterations in a row with something that is not finite

    def at(self, point: Point) -> Status:
        """RUNNING if a step can be made from ``point``."""
        if not point.finite:
            return Status.NONFINITE
        if point.grad_square == 0:
            return Status.STATIONARY
        return Status.GRADIENT if math.sqrt(point.grad_square) <= self._stop.grad_norm else Status.RUNNING

    def without_step(self, why: Status) -> Status:
        """After an iteration that made no step, since ``at`` said ``why``."""
        if self._batches == 1 or why is Status.GRADIENT:
            return why
        self.bad = self.bad + 1 if why is Status.NONFINITE else 0
        return Status.NONFINITE if self.bad >= self._stop.nonfinite else Status.RUNNING

    def after(self, verdicts: Sequence[Verdict], radii: Sequence[float]) -> Status:
        """After an iteration whose trial steps had ``verdicts``; ``radii``: what each left."""
        self.bad = self.bad + 1 if any(verdict.nonfinite for verdict in verdicts) else 0
        if self.bad >= self._stop.nonfinite:
            return Status.NONFINITE
        if self._batches > 1 or any(verdict.accepted for verdict in verdicts):
            return Status.RUNNING
        if all(verdict.converged for verdict in verdicts):
            return Status.CONVERGED
        stuck = all(verdict.converged or radius <= self._smallest for verdict, radius in zip(verdicts, radii, strict=True))
        return Status.RADIUS if stuck else Status.RUNNING
