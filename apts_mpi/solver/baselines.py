"""What APTS is compared with: SGD, Adam and AdamW, one message a gradient; torch's own optimizers on the flat vector."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from apts_mpi import timing
from apts_mpi.baseline import BaselineConfig
from apts_mpi.config import Config
from apts_mpi.contracts import Communicator, Objective, State, Status, StepInfo, Timers, Wishes, no_wishes
from apts_mpi.solver.exchange import Exchange
from apts_mpi.solver.schedule import Schedule
from apts_mpi.solver.vectors import dot, number, to_host


def optimizer(method: str, theta: Tensor, grad: Tensor, config: BaselineConfig) -> torch.optim.Optimizer:
    """torch's optimizer that moves ``theta`` (n,) in place by what stands in ``grad`` (n,) at each ``step()``."""
    point = nn.Parameter(theta)  # shares its memory
    point.grad = grad
    if method == "adam":
        return torch.optim.Adam([point], config.lr, weight_decay=config.weight_decay, fused=True)
    if method == "adamw":
        return torch.optim.AdamW([point], config.lr, weight_decay=config.weight_decay, fused=True)
    return torch.optim.SGD(
        [point], config.lr, momentum=config.momentum, nesterov=config.nesterov, weight_decay=config.weight_decay, fused=True
    )


def memory(owner: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What the optimizer of one vector remembers, live."""
    return {name: value for entry in owner.state.values() for name, value in entry.items() if isinstance(value, Tensor)}


def remember_(owner: torch.optim.Optimizer, state: Mapping[str, Tensor]) -> None:
    """Give the optimizer of one vector a copy of what ``memory`` gave."""
    point = owner.param_groups[0]["params"][0]
    owner.state.clear()
    kinds = {name: value.dtype if name == "step" else point.dtype for name, value in state.items()}
    if state:
        owner.state[point] = {name: value.to(point.device, kinds[name], copy=True) for name, value in state.items()}


class Baseline:
    """What all of them share: the exchange, counting, and the end of a run by numbers that are not finite.

    ``theta``: flat (n,), changed in place, the same on all ranks. Every rank constructs the object and calls ``step`` alike.
    """

    def __init__(
        self, theta: Tensor, objective: Objective, comm: Communicator, timers: Timers, config: Config, subdomains: int,
        wishes: Wishes = no_wishes,
    ) -> None:  # fmt: skip
        self.theta, self._objective, self._timers, self._config, self._subdomains = theta, objective, timers, config, subdomains
        self._exchange = Exchange(theta, objective, comm, timers, wishes)
        self._k = self._bad_steps = 0

    def _after(self, finite: bool) -> Status:
        """A step that is not finite is not made; too many in a row end the run."""
        self._bad_steps = 0 if finite else self._bad_steps + 1
        return Status.NONFINITE if self._bad_steps >= self._config.stop.nonfinite else Status.RUNNING

    def recall_(self) -> None:
        """Nothing is known beyond the state."""

    def _numbers(self) -> dict[str, Tensor]:
        return {"k": number(self._k), "bad_steps": number(self._bad_steps)}

    def _restore_numbers_(self, state: State) -> None:
        self._k, self._bad_steps = int(state.shared["k"]), int(state.shared["bad_steps"])

    def _record(
        self, epoch: int, before: tuple[int, int, int], status: Status, made: bool, loss: float, grad_norm: float = math.nan,
        step_norm: float = math.nan, local_iters: int = 0,
    ) -> StepInfo:  # fmt: skip
        """The record of an outer iteration; there is no radius, no ratio (6), and the loss after the step is not evaluated."""
        after = self._exchange.counts()
        self._k += 1
        return StepInfo(
            k=self._k - 1, epoch=epoch, loss=loss, grad_norm=grad_norm, rho=math.nan, accepted=made, radius=math.nan,
            step_norm=step_norm, global_rho=math.nan, global_accepted=False, global_radius=math.nan,
            local_iters=local_iters, local_accepted=local_iters if made else 0, loss_new=math.nan,
            gradient_samples=after[0] - before[0], value_samples=after[1] - before[1], reductions=after[2] - before[2],
            status=status, raised=self._exchange.heard(),
        )  # fmt: skip


class AllReduce(Baseline):
    """SGD, Adam or AdamW: each step sums the gradients of all subdomains in one message and moves theta.

    g = sum_i grad sum_{O_i} loss / |D_k|; loss and flags travel behind g. With ``baseline.overlap`` parts of the message
    leave during the backward pass of the rank's last subdomain; all of it has arrived before theta moves.
    """

    def __init__(
        self, theta: Tensor, objective: Objective, comm: Communicator, timers: Timers, config: Config, subdomains: int,
        wishes: Wishes = no_wishes,
    ) -> None:  # fmt: skip
        super().__init__(theta, objective, comm, timers, config, subdomains, wishes)
        self._grad = self._exchange.message.vector  # the first subdomain's gradient is made where it is sent from
        self._terms = [self._grad, *(torch.zeros_like(theta) for _ in objective.subdomains[1:])]
        self._optimizer = optimizer(config.method, theta, self._grad, config.baseline)
        self._schedule = Schedule(config, objective.batches)

    def step(self, epoch: int = 0, batch: int = 0) -> StepInfo:
        """One step on minibatch ``batch`` of ``epoch``; every rank calls."""
        before = self._exchange.counts()
        self._objective.select(epoch, batch)
        self._sum_gradients()
        loss, square = self._exchange.get("loss"), dot(self._grad, self._grad)
        finite = math.isfinite(loss) and math.isfinite(square)
        status = self._small(math.sqrt(square)) if finite else Status.RUNNING
        made = finite and status is Status.RUNNING
        if made:
            with self._timers(timing.ACCEPT):
                self._optimizer.param_groups[0]["lr"] = self._schedule(epoch + batch / self._objective.batches)
                self._optimizer.step()
        if status is Status.RUNNING:
            status = self._after(finite)
        return self._record(epoch, before, status, made, loss, math.sqrt(square) if finite else math.nan)

    def state(self) -> State:
        """All that a later object needs to go on with the same bits; tensors may be live."""
        return State(self._numbers() | {f"optimizer.{name}": value for name, value in memory(self._optimizer).items()})

    def restore_(self, state: State) -> None:
        """Go on from ``state`` and the present ``theta``; ``recall_`` must follow."""
        self._restore_numbers_(state)
        remember_(self._optimizer, state.part("optimizer"))

    def _sum_gradients(self) -> None:
        """The gradient of the loss over all of D_k, in the message."""
        terms, last, values = self._terms, len(self._terms) - 1, []
        with self._timers(timing.EVALUATE):
            for i, subdomain in enumerate(self._objective.subdomains):
                if self._config.baseline.overlap and i == last:
                    nbytes = self._config.baseline.bucket
                    values.append(subdomain.owned_in_parts(self.theta, terms[i], nbytes, lambda a, b: self._exchange.start_(terms, a, b)))
                else:
                    values.append(subdomain.owned(self.theta, terms[i]))
        if self._config.baseline.overlap:
            self._exchange.finish_(loss=to_host(values))
        else:
            self._exchange.sum_(terms, loss=to_host(values))

    def _small(self, grad_norm: float) -> Status:
        """Is there anything to do at theta_k?"""
        if grad_norm == 0 and self._objective.batches == 1 and not self._config.baseline.weight_decay:
            return Status.STATIONARY
        return Status.GRADIENT if 0 < grad_norm <= self._config.stop.grad_norm else Status.RUNNING
