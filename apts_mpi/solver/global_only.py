"""The trust region without a preconditioner: steps A and E of APTS alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from apts_mpi import timing
from apts_mpi.config import Config
from apts_mpi.contracts import Communicator, Objective, State, Status, StepInfo, Timers, Wishes, no_wishes
from apts_mpi.solver.build import build_model
from apts_mpi.solver.ending import Ending
from apts_mpi.solver.exchange import Exchange
from apts_mpi.solver.model import Step
from apts_mpi.solver.shared_loss import SharedLoss
from apts_mpi.solver.trust_region import Verdict, judge, next_radius
from apts_mpi.solver.vectors import number


class GlobalTrustRegion:
    """Minimise f(theta; D) by trust-region steps on all of D, with the model of ``global_step``.

    One gradient evaluation and one message per iteration, two with fresh minibatches. ``theta``: flat (n,),
    changed in place. Every rank constructs the object and calls ``step`` alike.
    """

    def __init__(
        self, theta: Tensor, objective: Objective, comm: Communicator, timers: Timers, config: Config, subdomains: int,
        wishes: Wishes = no_wishes,
    ) -> None:  # fmt: skip
        self.theta, self._config, self._timers, self._objective = theta, config, timers, objective
        model = build_model(config.global_step.solver, config.global_step.memory, config.local.gamma, theta)
        assert model is not None, "Config refuses a global step without a model"
        self._model = model
        self._exchange = Exchange(theta, objective, comm, timers, wishes)
        self._loss = SharedLoss(objective, self._exchange, timers, None)
        self._trial = torch.zeros_like(theta)
        self.radius = config.trust_region.radius_init
        self._eps = torch.finfo(theta.dtype).eps
        self._ending = Ending(config, objective.batches)
        self._k = 0
        self._known = False

    def step(self, epoch: int = 0, batch: int = 0) -> StepInfo:
        """One trial step on minibatch ``batch`` of ``epoch``; every rank calls."""
        before = self._exchange.counts()
        if not self._known:
            self._loss.select(epoch, batch)
            self._loss.evaluate(self.theta)
            self._loss.move()
        start, radius = self._loss.here, self.radius
        loss, grad_norm, why = start.loss, math.sqrt(start.grad_square), self._ending.at(start)
        rho, accepted, step_norm = math.nan, False, 0.0
        if why is Status.RUNNING:
            verdict, step_norm = self._try()
            rho, accepted, status = verdict.rho, verdict.accepted, self._ending.after([verdict], [self.radius])
            self._known = self._objective.batches == 1
        else:
            status = self._ending.without_step(why)
        after = self._exchange.counts()
        self._k += 1
        return StepInfo(
            k=self._k - 1, epoch=epoch, loss=loss, grad_norm=grad_norm, rho=rho, accepted=accepted, radius=radius, step_norm=step_norm,
            global_rho=math.nan, global_accepted=False, global_radius=math.nan, local_iters=0, local_accepted=0,
            loss_new=self._loss.here.loss, gradient_samples=after[0] - before[0], value_samples=after[1] - before[1],
            reductions=after[2] - before[2], status=status, raised=self._exchange.heard(),
        )  # fmt: skip

    def state(self) -> State:
        """All that a later object needs to go on with the same bits; tensors may be live."""
        numbers = {"k": self._k, "radius": self.radius, "bad_trials": self._ending.bad, "known": self._known}
        model = {f"model.{name}": value for name, value in self._model.state().items()}
        return State({name: number(value) for name, value in numbers.items()} | model)

    def restore_(self, state: State) -> None:
        """Go on from ``state`` and the present ``theta``; ``recall_`` must follow."""
        shared = state.shared
        self._k, self._ending.bad, self.radius = int(shared["k"]), int(shared["bad_trials"]), float(shared["radius"])
        self._model.restore_(state.part("model"))
        self._known = bool(shared["known"]) and self._objective.batches == 1

    def recall_(self) -> None:
        """Evaluate f and its gradient at theta again if they are to be known, which belongs to no iteration; every rank calls."""
        if self._known:
            self._loss.begin(self.theta)

    def _try(self) -> tuple[Verdict, float]:
        """Propose, evaluate, judge; theta, the model and the radius follow."""
        here, rule = self._loss.here, self._config.trust_region
        with self._timers(timing.MODEL):
            self._model.begin(here.grad)
            step: Step = self._model.propose_(here.grad, self.radius)
            torch.add(self.theta, step.vector, out=self._trial)
        there = self._loss.evaluate(self._trial, self._config.global_step.solver == "lsr1" or self._objective.batches == 1)
        verdict = judge(here.loss - there.loss, step.predicted, here.loss, there.finite, rule, self._eps)
        with self._timers(timing.MODEL):
            if self._config.global_step.solver == "lsr1" and there.finite:
                self._model.observe_(step.vector, here.grad, there.grad)
        with self._timers(timing.ACCEPT):
            if verdict.accepted:
                self.theta.copy_(self._trial)
                self._loss.move()
        self.radius = next_radius(self.radius, verdict, step.hits_boundary, rule, rule.radius_min, rule.radius_max)
        return verdict, step.norm
