"""Acceptance of a step and the next radius, eq. (7); the same for local and global steps."""

from __future__ import annotations

import math
from dataclasses import dataclass

from apts_mpi.config import TrustRegionConfig


@dataclass(frozen=True)
class Verdict:
    """What became of a trial step."""

    rho: float  # actual / predicted; nan where that means nothing
    accepted: bool
    converged: bool  # predicted decrease below the rounding of f: neither accepted nor shrunk
    nonfinite: bool  # trial value or gradient not finite


def judge(
    actual: float, predicted: float, loss: float, finite: bool, config: TrustRegionConfig, eps: float, promise: float = 0.0,
) -> Verdict:  # fmt: skip
    """Compare the decrease with the predicted one: rho = actual / predicted, accepted if rho >= eta0.

    ``loss`` is f before the step, ``finite`` whether the trial value and gradient are, ``eps`` the rounding
    unit of the dtype that f is evaluated in. ``predicted`` <= 0 or nan: rejected. ``predicted`` below
    eps |loss|: converged, because rho would be a ratio of rounding errors; but rejected if ``promise``, the
    most that a step of this radius might have predicted, is above it: then the step came to nothing, not the slope.
    """
    if not (finite and math.isfinite(actual)):
        return Verdict(math.nan, accepted=False, converged=False, nonfinite=True)
    if not (math.isfinite(predicted) and predicted > 0):
        return Verdict(math.nan, accepted=False, converged=False, nonfinite=False)
    if predicted <= eps * abs(loss):
        return Verdict(math.nan, accepted=False, converged=promise <= eps * abs(loss), nonfinite=False)
    rho = actual / predicted
    return Verdict(rho, accepted=rho >= config.accept, converged=False, nonfinite=False)


def next_radius(
    radius: float, verdict: Verdict, hits_boundary: bool, config: TrustRegionConfig, minimum: float, maximum: float
) -> float:
    """The radius after a step, eq. (7), within [minimum, maximum].

    Grows if rho > eta2 and the step reached the boundary (pass True for a step that is no trust-region
    step proper); shrinks if rho < eta1 or the step was rejected, else stays.
    """
    if verdict.converged:
        return min(max(radius, minimum), maximum)
    if not verdict.accepted or verdict.rho < config.eta1:
        radius *= config.shrink
    elif verdict.rho > config.eta2 and hits_boundary:
        radius *= config.grow
    return min(max(radius, minimum), maximum)
