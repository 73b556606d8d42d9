"""What a local solver is given and gives back, and the paper's: a trust region on f_i of eq. (3)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from apts_mpi import timing
from apts_mpi.config import LocalConfig, TrustRegionConfig
from apts_mpi.contracts import Subdomain, Timers
from apts_mpi.native import kernels
from apts_mpi.solver.metric import Metric
from apts_mpi.solver.model import Model
from apts_mpi.solver.trust_region import judge, next_radius
from apts_mpi.solver.vectors import number

NEAR = 1e-3  # relative distance at which a length has reached its bound


class Spare(NamedTuple):
    """Vectors (n,) that the outer iteration does not need while the subdomains work, by their use in ``LocalTrustRegion``."""

    grad: Tensor
    grad_new: Tensor
    trial: Tensor
    reached: Tensor  # the local step if the trial is accepted


@dataclass(frozen=True)
class LocalStart:
    """One subdomain at theta_k: vectors are (n,), those of ``spare`` to be written and no other."""

    index: int  # of the subdomain on this rank
    subdomain: Subdomain
    theta: Tensor
    grad: Tensor  # grad f(theta_k; D)
    share_value: float  # the subdomain's share of f(theta_k; D) ...
    share_grad: Tensor  # ... and of its gradient
    chunks: Tensor  # (chunks, n), kept chunk gradients at theta_k, or empty
    ball: float  # bound on the length of the accumulated local step
    radius_min: float  # lower bound of the local radius
    spare: Spare
    metric: Metric | None = None  # of a sweep; None: the Euclidean one


@dataclass(frozen=True)
class LocalResult:
    """What happened in one subdomain."""

    decrease: float  # f_i(theta_k) - f_i(theta_k + s_i), the subdomain's term in (6)
    length: float | Tensor  # ||s_i|| <= ball; 0-d where the device has not been waited for
    iters: int
    accepted: int
    converged: int = 0  # 1: no step, because the model predicts a decrease below the rounding of f_i


class LocalSolver(Protocol):
    """Moves one subdomain, without communication."""

    predicts: bool  # does ``decrease`` serve as the subdomain's term in the denominator of (6)?
    full_length: bool  # is every path as long as the ball, so that ||s_i|| / ball tells how straight it was?

    @property
    def chunk_count(self) -> Callable[[Subdomain], int] | None:
        """How many chunks of a subdomain keep their gradients; None: none do."""

    def solve(self, start: LocalStart, out: Tensor) -> LocalResult:
        """The local step s_i into ``out`` (n,), ||s_i|| <= ball."""

    def state(self, index: int) -> dict[str, Tensor]:
        """What is remembered of the rank's subdomain ``index`` until its next solve."""

    def restore_(self, index: int, state: Mapping[str, Tensor]) -> None:
        """Remember what ``state`` gave."""


class CorrectedLoss:
    """f_i(theta) = f(theta; D_i) + <r_i, theta - theta_k>, r_i = grad f(theta_k; D) - grad f(theta_k; D_i): eqs. (3), (4).

    Value and gradient are made in the same method, so the correction reaches both. At theta_k the
    gradient is the global one. Without ``consistent`` r_i = 0, for study.
    """

    def __init__(self, like: Tensor, consistent: bool) -> None:
        self._consistent = consistent
        self._correction = torch.zeros_like(like)  # r_i, (n,)
        self._along: float | Tensor = 0.0  # <r_i, theta - theta_k> at the trial point

    def begin(self, start: LocalStart, grad: Tensor) -> float:
        """f_i(theta_k); its gradient into ``grad``, (n,). Only the borrowed samples are evaluated."""
        self._start = start
        value = float(start.subdomain.local_from_owned(start.theta, start.share_value, start.share_grad, grad))
        if self._consistent:
            torch.sub(start.grad, grad, out=self._correction)
            grad.copy_(start.grad)
        return value

    def advance_(self, step: Tensor, moved: Tensor, reached: Tensor, trial: Tensor) -> float | Tensor:
        """reached = moved + step, trial = theta_k + reached; reached'reached, as a number or 0-d on the device. Nothing waits."""
        square, self._along = kernels.reach_(step, moved, self._start.theta, self._correction, reached, trial)
        return square

    def evaluate(self, trial: Tensor, grad: Tensor) -> Tensor:
        """f_i at the ``trial`` of ``advance_``, 0-d float64 on the device; its gradient into ``grad``. Nothing waits."""
        value = self._start.subdomain.local(trial, grad)
        if self._consistent:
            grad.add_(self._correction)
        return value + self._along


class LocalTrustRegion:
    """Up to nu trust-region iterations on f_i inside the ball ||theta - theta_k|| <= Delta.

    The bound is on the accumulated step: each step is limited to what is left of the ball. The model
    starts empty at every theta_k. The radius moves by (7). It starts at ``local.radius_start`` * ball or,
    with ``local.carry``, where the subdomain's previous outer iteration left it.
    """

    predicts, full_length = True, False
    chunk_count: Callable[[Subdomain], int] | None = None

    def __init__(
        self, model: Model, config: LocalConfig, trust_region: TrustRegionConfig, consistent: bool, like: Tensor, timers: Timers
    ) -> None:
        self._model, self._config, self._trust_region, self._timers = model, config, trust_region, timers
        self._loss = CorrectedLoss(like, consistent)
        self._eps = torch.finfo(like.dtype).eps
        self._radii: dict[int, float] = {}

    def solve(self, start: LocalStart, out: Tensor) -> LocalResult:
        """The local step s_i into ``out``, (n,)."""
        model, ball = self._model, start.ball
        grad, grad_new, trial, reached = start.spare
        local = out.zero_()
        first = loss = self._loss.begin(start, grad)
        radius = min(self._radii.get(start.index, self._config.radius_start * ball), ball)
        smallest = min(start.radius_min, ball)
        moved, accepted, iters = 0.0, 0, 0
        with self._timers(timing.MODEL):
            model.reset()
            model.begin(grad)
        while iters < self._config.iters and moved < ball * (1 - NEAR):
            with self._timers(timing.MODEL):
                bound = min(radius, ball - moved)
                step = model.propose_(grad, bound)
                square = self._loss.advance_(step.vector, local, reached, trial)
            iters += 1
            value = self._loss.evaluate(trial, grad_new)
            with self._timers(timing.MODEL):
                seen = model.observe_(step.vector, grad, grad_new, [value, square])  # the one stop
                loss_new, square = seen.also
                verdict = judge(loss - loss_new, step.predicted, loss, seen.finite, self._trust_region, self._eps)
                if verdict.accepted:
                    model.accept()
                    loss, grad, grad_new = loss_new, grad_new, grad
                    local, reached = reached, local
                    moved, accepted = math.sqrt(square), accepted + 1
            if verdict.converged or not step.finite:
                break
            # A rejected bound shrinks, whatever set it; only a radius that was the bound has earned to grow.
            earned = step.hits_boundary and bound >= radius * (1 - NEAR)
            radius = next_radius(radius if verdict.accepted else bound, verdict, earned, self._trust_region, smallest, ball)
        if local is not out:
            out.copy_(local)
        if self._config.carry:
            self._radii[start.index] = radius
        if verdict.converged:  # the radius may be too small to see a decrease: do not stay there
            self._radii.pop(start.index, None)
        return LocalResult(first - loss, moved, iters, accepted, converged=int(verdict.converged and accepted == 0))

    def state(self, index: int) -> dict[str, Tensor]:
        """The radius to start from, if one was left."""
        return {"radius": number(self._radii[index])} if index in self._radii else {}

    def restore_(self, index: int, state: Mapping[str, Tensor]) -> None:
        """Start from the radius that was left."""
        self._radii.pop(index, None)
        if "radius" in state:
            self._radii[index] = float(state["radius"])
