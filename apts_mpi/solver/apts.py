"""APTS and SAPTS: Algorithm 1 of the paper, one outer iteration per call of ``step``."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from apts_mpi import timing
from apts_mpi.config import Config
from apts_mpi.contracts import Communicator, Objective, State, Status, StepInfo, Timers, Wishes, no_wishes
from apts_mpi.solver.build import build_local, build_metric, build_model, build_momentum
from apts_mpi.solver.ending import Ending
from apts_mpi.solver.exchange import Exchange
from apts_mpi.solver.first_radius import first_radius
from apts_mpi.solver.local import LocalStart, Spare
from apts_mpi.solver.metric import Metric
from apts_mpi.solver.model import Model, Step
from apts_mpi.solver.momentum import Momentum
from apts_mpi.solver.shared_loss import Point, SharedLoss
from apts_mpi.solver.trust_region import Verdict, judge, next_radius
from apts_mpi.solver.vectors import number, to_host


class LocalCounts(NamedTuple):
    """Local iterations of all subdomains, the accepted ones, and the subdomains that have converged."""

    iters: int
    accepted: int
    converged: int


class APTS:
    """Minimise f(theta; D) with local steps of all subdomains and a global step.

    ``theta``: flat (n,), any real dtype and device, changed in place; the same on all ranks. ``objective``
    gives this rank's subdomains, ``subdomains`` counts those of all ranks. Every rank constructs the
    object and calls ``step`` alike; all decisions rest on summed numbers that are equal on all ranks.
    """

    def __init__(
        self, theta: Tensor, objective: Objective, comm: Communicator, timers: Timers, config: Config, subdomains: int,
        wishes: Wishes = no_wishes,
    ) -> None:  # fmt: skip
        self.theta, self._config, self._timers, self._subdomains = theta, config, timers, subdomains
        self._objective = objective
        self._local = build_local(config, theta, timers)
        self._model = build_model(config.global_step.solver, config.global_step.memory, config.local.gamma, theta)
        self._metric = build_metric(config, theta, objective.batches)
        self._momentum = build_momentum(config, theta, subdomains)
        self._exchange = Exchange(theta, objective, comm, timers, wishes)
        self._loss = SharedLoss(objective, self._exchange, timers, self._local.chunk_count)
        self._steps = [torch.zeros_like(theta) for _ in objective.subdomains]
        self._step, self._trial = torch.zeros_like(theta), torch.zeros_like(theta)
        self.radius = self.global_radius = config.trust_region.radius_init
        mean_in_own_ball = config.solver.combine == "mean" and config.solver.radius == "own"
        self._seeks_radius = self._local.full_length and mean_in_own_ball  # of the first iteration that can make a step
        self._eps = torch.finfo(theta.dtype).eps
        self._ending = Ending(config, objective.batches)
        self._k = 0
        self._known = False  # are f and its gradient known at theta on the present data?

    def step(self, epoch: int = 0, batch: int = 0) -> StepInfo:
        """One outer iteration on minibatch ``batch`` of ``epoch``; every rank calls."""
        before = self._exchange.counts()
        start = self._begin(epoch, batch)
        if (why := self._ending.at(start)) is not Status.RUNNING:
            return self._stay(epoch, start, before, self._ending.without_step(why))
        loss, grad_norm = start.loss, math.sqrt(start.grad_square)
        if self._seeks_radius:
            self.radius, self._seeks_radius = self._first_radius(start), False
        radius = self.radius
        local, length, predicted, step_norm = self._local_steps(start)
        verdict = self._try_sum(local, length, predicted)
        global_verdict, global_radius = self._global_step()
        self._known = self._objective.batches == 1
        self._k += 1
        after = self._exchange.counts()
        return StepInfo(
            k=self._k - 1, epoch=epoch, loss=loss, grad_norm=grad_norm,
            rho=verdict.rho, accepted=verdict.accepted, radius=radius, step_norm=step_norm,
            global_rho=global_verdict.rho if global_verdict else math.nan,
            global_accepted=bool(global_verdict and global_verdict.accepted), global_radius=global_radius,
            local_iters=local.iters, local_accepted=local.accepted, loss_new=self._loss.here.loss,
            gradient_samples=after[0] - before[0], value_samples=after[1] - before[1], reductions=after[2] - before[2],
            status=self._status(verdict, global_verdict), raised=self._exchange.heard(),
        )  # fmt: skip

    def state(self) -> State:
        """All that a later object needs to go on with the same bits; tensors may be live."""
        numbers = {"k": self._k, "radius": self.radius, "global_radius": self.global_radius, "bad_trials": self._ending.bad}
        marks = {"known": self._known, "seeks_radius": self._seeks_radius}
        shared = {name: number(value) for name, value in {**numbers, **marks}.items()}
        for part, holder in self._holders():
            shared |= {f"{part}.{name}": value for name, value in holder.state().items()}
        return State(shared, [self._local.state(i) for i in range(len(self._objective.subdomains))])

    def restore_(self, state: State) -> None:
        """Go on from ``state`` and the present ``theta``; without ``own`` the subdomains begin anew. ``recall_`` must follow."""
        shared = state.shared
        self._k, self._ending.bad = int(shared["k"]), int(shared["bad_trials"])
        self._seeks_radius = self._seeks_radius and bool(shared.get("seeks_radius", not self._k))
        self.radius, self.global_radius = float(shared["radius"]), float(shared["global_radius"])
        for part, holder in self._holders():
            holder.restore_(state.part(part))
        for i, own in enumerate(state.own):
            self._local.restore_(i, own)
        self._known = bool(shared["known"]) and self._objective.batches == 1

    def _holders(self) -> list[tuple[str, Model | Metric | Momentum]]:
        """The parts that remember something, by their names in a state."""
        parts = {"model": self._model, "metric": self._metric, "momentum": self._momentum}
        return [(name, part) for name, part in parts.items() if part is not None]

    def recall_(self) -> None:
        """Evaluate f and its gradient at theta again if they are to be known, which belongs to no iteration; every rank calls."""
        if self._known:
            self._loss.begin(self.theta)

    def _begin(self, epoch: int, batch: int) -> Point:
        """A: f, its gradient and the shares of both at theta_k; in full batch they are known already."""
        if not self._known:
            self._loss.select(epoch, batch)
            self._loss.evaluate(self.theta)
            self._loss.move()
        return self._loss.here

    def _first_radius(self, start: Point) -> float:
        """Delta of the first outer iteration, from values of f along its gradient alone."""
        grad_norm = math.sqrt(start.grad_square)

        def decrease(length: float) -> float:
            torch.add(self.theta, start.grad, alpha=-length / grad_norm, out=self._trial)
            return start.loss - self._loss.evaluate(self._trial, gradient=False).loss

        return first_radius(decrease, grad_norm, self._config.trust_region)

    def _local_steps(self, start: Point) -> tuple[LocalCounts, float, float, float]:
        """B: the local solvers, without communication; C: s~ of (5), the paths' length, the denominator of (6) and ||s~||."""
        mean = self._config.solver.combine == "mean"
        share = 1.0 if mean else 1.0 / self._subdomains
        ball, smallest = self.radius * share, self._config.trust_region.radius_min * share
        subdomains, results = self._objective.subdomains, []
        there = self._loss.there  # of the last trial point, whose gradient nobody asks for any more
        spare = Spare(there.grad, there.shares[0], self._trial, self._step)
        with self._timers(timing.LOCAL_SOLVE):
            for i, subdomain in enumerate(subdomains):
                begin = LocalStart(
                    index=i, subdomain=subdomain, theta=self.theta, grad=start.grad, share_value=start.values[i],
                    share_grad=start.shares[i], chunks=start.chunks[i], ball=ball, radius_min=smallest, spare=spare, metric=self._metric,
                )  # fmt: skip
                results.append(self._local.solve(begin, self._steps[i]))
                if mean:
                    self._steps[i].mul_(subdomain.weight)
        weights = [subdomain.weight if mean else 1.0 for subdomain in subdomains]
        self._step.copy_(self._exchange.sum_(
            self._steps, decrease=[weight * result.decrease for weight, result in zip(weights, results, strict=True)],
            length=[weight * length for weight, length in zip(weights, to_host([result.length for result in results]), strict=True)],
            local_iters=[result.iters for result in results], local_accepted=[result.accepted for result in results],
            local_converged=[result.converged for result in results],
        ))  # fmt: skip
        get = self._exchange.get
        with self._timers(timing.MODEL):
            slope, square = self._momentum.add_(self._step, start.grad, get("length"), self.radius)
        predicted = get("decrease") if self._local.predicts else -0.5 * slope
        counts = LocalCounts(*(round(get(name)) for name in ("local_iters", "local_accepted", "local_converged")))
        return counts, get("length"), predicted, math.sqrt(square) if math.isfinite(square) else math.nan

    def _try_sum(self, local: LocalCounts, length: float, predicted: float) -> Verdict:
        """D: rho of (6) for the summed step; theta and the radius move by (7)."""
        if length == 0:  # no subdomain moved: f at theta_k is known
            verdict = Verdict(math.nan, accepted=False, converged=local.converged == self._subdomains, nonfinite=False)
        else:
            torch.add(self.theta, self._step, out=self._trial)
            before = self._loss.here
            straight = 0.5 * math.sqrt(before.grad_square) * self.radius  # what paths of full length predict that do not turn back
            verdict, after = self._judge_trial(
                predicted, gradient=self._model is not None or self._objective.batches == 1,
                promise=straight if self._local.full_length else 0.0,
            )  # fmt: skip
            if self._metric is not None and after.finite:
                with self._timers(timing.MODEL):
                    self._metric.observe(self._step, before.grad, after.grad)
        with self._timers(timing.MODEL):
            self._momentum.keep(self._step, verdict.accepted)
        shared = self._config.solver.radius == "shared"
        reached = shared or length >= self._config.trust_region.reached * self.radius
        self.radius = self._next_radius(self.radius, verdict, reached)
        if shared:
            self.global_radius = self.radius
        return verdict

    def _global_step(self) -> tuple[Verdict | None, float]:
        """E: one trust-region step on all of D, with a model that lives through the outer iterations."""
        radius = self.global_radius
        if self._model is None:
            return None, math.nan
        with self._timers(timing.MODEL):
            grad = self._loss.here.grad
            self._model.begin(grad)
            step: Step = self._model.propose_(grad, radius)
            torch.add(self.theta, step.vector, out=self._trial)
        wants_gradient = self._config.global_step.solver == "lsr1" or self._objective.batches == 1
        before = self._loss.here
        verdict, after = self._judge_trial(step.predicted, wants_gradient)
        if wants_gradient and after.finite:
            with self._timers(timing.MODEL):
                self._model.observe_(step.vector, before.grad, after.grad)
        self.global_radius = self._next_radius(radius, verdict, step.hits_boundary)
        if self._config.solver.radius == "shared":
            self.radius = self.global_radius
        return verdict, radius

    def _judge_trial(self, predicted: float, gradient: bool, promise: float = 0.0) -> tuple[Verdict, Point]:
        """Evaluate the trial point and, if it is accepted, make it the current one; else theta stays, bit for bit. And what was found."""
        here, there = self._loss.here, self._loss.evaluate(self._trial, gradient)
        verdict = judge(here.loss - there.loss, predicted, here.loss, there.finite, self._config.trust_region, self._eps, promise)
        with self._timers(timing.ACCEPT):
            if verdict.accepted:
                self.theta.copy_(self._trial)
                self._loss.move()
        return verdict, there

    def _next_radius(self, radius: float, verdict: Verdict, hits_boundary: bool) -> float:
        rule = self._config.trust_region
        return next_radius(radius, verdict, hits_boundary, rule, rule.radius_min, rule.radius_max)

    def _status(self, verdict: Verdict, global_verdict: Verdict | None) -> Status:
        """Can another outer iteration do anything?"""
        if global_verdict is None:
            return self._ending.after([verdict], [self.radius])
        return self._ending.after([verdict, global_verdict], [self.radius, self.global_radius])

    def _stay(self, epoch: int, start: Point, before: tuple[int, int, int], status: Status) -> StepInfo:
        """The record of an iteration that made no step."""
        after = self._exchange.counts()
        self._k += 1
        return StepInfo(
            k=self._k - 1, epoch=epoch, loss=start.loss, grad_norm=math.sqrt(start.grad_square),
            rho=math.nan, accepted=False, radius=self.radius, step_norm=0.0,
            global_rho=math.nan, global_accepted=False, global_radius=self.global_radius,
            local_iters=0, local_accepted=0, loss_new=start.loss,
            gradient_samples=after[0] - before[0], value_samples=after[1] - before[1], reductions=after[2] - before[2],
            status=status, raised=self._exchange.heard(),
        )  # fmt: skip
