"""Local SGD: steps of SGD in every subdomain, one message for many gradients."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from apts_mpi import timing
from apts_mpi.config import Config
from apts_mpi.contracts import Communicator, Objective, State, StepInfo, Timers, Wishes, no_wishes
from apts_mpi.solver.baselines import Baseline, memory, optimizer, remember_
from apts_mpi.solver.build import used_minibatches
from apts_mpi.solver.schedule import Schedule
from apts_mpi.solver.vectors import norm, to_host


class LocalSGD(Baseline):
    """H steps of SGD in every subdomain, each on its own share of H used_minibatches, then one average (Stich 2019).

    theta_{k+1} = theta_k + sum_i w_i (theta_{i,H} - theta_k), w_i the subdomain's mean share of the minibatches. Momentum
    stays with its subdomain. The recorded loss is the mean over the local steps, each before it was made. Full batch:
    H steps on all samples.
    """

    def __init__(
        self, theta: Tensor, objective: Objective, comm: Communicator, timers: Timers, config: Config, subdomains: int,
        wishes: Wishes = no_wishes,
    ) -> None:  # fmt: skip
        super().__init__(theta, objective, comm, timers, config, subdomains, wishes)
        self._grad = torch.zeros_like(theta)
        self._points = [torch.zeros_like(theta) for _ in objective.subdomains]
        self._optimizers = [optimizer("sgd", point, self._grad, config.baseline) for point in self._points]
        self._schedule = Schedule(config, objective.batches, config.baseline.period)

    def step(self, epoch: int = 0, batch: int = 0) -> StepInfo:
        """Minibatches H batch .. H batch + H - 1 of ``epoch``, as far as it has so many; every rank calls."""
        before, batches = self._exchange.counts(), self._objective.batches
        used = [0] * self._config.baseline.period if batches == 1 else used_minibatches(self._config, batches, batch)
        values, weights = self._local_steps(epoch, used)
        for point, weight in zip(self._points, weights, strict=True):
            point.sub_(self.theta).mul_(weight)
        iters = [len(used)] * len(self._points)
        step = self._exchange.sum_(self._points, loss=values, local_iters=iters)
        loss, step_norm = self._exchange.get("loss"), norm(step)
        finite = math.isfinite(loss) and math.isfinite(step_norm)
        with self._timers(timing.ACCEPT):
            if finite:
                self.theta.add_(step)
            else:
                for each in self._optimizers:
                    each.state.clear()  # a momentum that is not finite would never recover
        local_iters = round(self._exchange.get("local_iters"))
        return self._record(epoch, before, self._after(finite), finite, loss, step_norm=step_norm, local_iters=local_iters)

    def state(self) -> State:
        """All that a later object needs to go on with the same bits; tensors may be live."""
        return State(self._numbers(), [memory(each) for each in self._optimizers])

    def restore_(self, state: State) -> None:
        """Go on from ``state`` and the present ``theta``; ``recall_`` must follow."""
        self._restore_numbers_(state)
        for each, own in zip(self._optimizers, state.own or [{}] * len(self._optimizers), strict=True):
            remember_(each, own)

    def _local_steps(self, epoch: int, used: range | list[int]) -> tuple[list[float], list[float]]:
        """Move every point from theta; per subdomain its shares of the mean loss and of the samples. No communication."""
        values: list[Tensor | float] = [0.0] * len(self._points)  # on the device until all steps are made
        weights = [0.0] * len(self._points)
        with self._timers(timing.LOCAL_SOLVE):
            for point in self._points:
                point.copy_(self.theta)
            for h, minibatch in enumerate(used):
                self._objective.select(epoch, minibatch)
                done = h / len(used) if self._objective.batches == 1 else minibatch / self._objective.batches
                for i, subdomain in enumerate(self._objective.subdomains):
                    share = subdomain.weight / len(used)
                    values[i] += share * subdomain.local(self._points[i], self._grad)
                    weights[i] += share
                    self._optimizers[i].param_groups[0]["lr"] = self._schedule(epoch + done)
                    self._optimizers[i].step()
        return to_host(values), weights
