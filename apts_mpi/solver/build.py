"""From the config to the stepper and its parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from torch import Tensor, device

from apts_mpi.config import Config
from apts_mpi.contracts import Communicator, Objective, State, StepInfo, Timers, Wishes, no_wishes
from apts_mpi.identity import has_momentum
from apts_mpi.recording import recordings
from apts_mpi.solver.local import LocalSolver, LocalTrustRegion
from apts_mpi.solver.lsr1 import LSR1
from apts_mpi.solver.metric import Metric
from apts_mpi.solver.model import FirstOrder, Model
from apts_mpi.solver.momentum import Momentum
from apts_mpi.solver.sweep import Sweep


class Stepper(Protocol):
    """A method: minimises f by changing ``theta`` (n,) in place."""

    theta: Tensor

    def step(self, epoch: int = 0, batch: int = 0) -> StepInfo:
        """One outer iteration; every rank calls."""


@runtime_checkable
class Resumable(Stepper, Protocol):
    """A method that can be kept in a checkpoint."""

    def state(self) -> State:
        """All that a later object needs, with theta, to go on with the same bits; tensors may be live."""

    def restore_(self, state: State) -> None:
        """Go on from ``state`` and the present ``theta``; without ``own`` the subdomains begin anew. ``recall_`` must follow.

        Not collective. KeyError, IndexError, RuntimeError or ValueError if the state is not one of such a method.
        """

    def recall_(self) -> None:
        """Evaluate what the state does not hold; every rank calls."""


def build_stepper(
    config: Config, theta: Tensor, objective: Objective, comm: Communicator, timers: Timers, subdomains: int,
    wishes: Wishes = no_wishes,
) -> Stepper:  # fmt: skip
    """The method that ``method`` names; every rank calls. ``check_method`` comes first."""
    from apts_mpi.solver.apts import APTS  # these need what stands below
    from apts_mpi.solver.average import Averaged
    from apts_mpi.solver.baselines import AllReduce
    from apts_mpi.solver.global_only import GlobalTrustRegion
    from apts_mpi.solver.local_sgd import LocalSGD

    kinds: dict[str, Callable[..., Resumable]] = {"apts": APTS, "local-sgd": LocalSGD, "trust-region": GlobalTrustRegion}
    method = kinds.get(config.method, AllReduce)(theta, objective, comm, timers, config, subdomains, wishes)
    return Averaged(method, config.average) if config.average else method


def check_method(config: Config, batches: int, where: device) -> None:
    """Raise ValueError if the method cannot work with so many minibatches in an epoch or on this device; not collective."""
    if config.baseline.overlap and where.type != "cpu":
        raise ValueError(f"baseline.overlap works on CPU tensors alone, the device is {where}; set baseline.overlap = false")
    if config.model.precision == "tf32" and where.type != "cuda":
        raise ValueError(f"model.precision = tf32 is of GPUs, the device is {where}; set model.precision = full or bf16")
    if config.method == "local-sgd" and 1 < batches < config.baseline.period:
        period = config.baseline.period
        raise ValueError(f"baseline.period = {period} is more than the {batches} minibatches of an epoch; lower it or data.batch")


def outer_per_epoch(config: Config, batches: int) -> int:
    """Outer iterations in an epoch of ``batches`` minibatches: one each, or one for up to H of them."""
    return -(-batches // _period(config))


def used_minibatches(config: Config, batches: int, batch: int) -> range:
    """Which of the ``batches`` minibatches of an epoch its outer iteration ``batch`` uses, in their order."""
    return range(batch * _period(config), min((batch + 1) * _period(config), batches))


def _period(config: Config) -> int:
    return config.baseline.period if config.method == "local-sgd" else 1


def build_local(config: Config, like: Tensor, timers: Timers) -> LocalSolver:
    """The local solver that ``local.solver`` names; ``like`` gives n, dtype and device."""
    if config.local.solver == "sweep":
        return Sweep(config.local, like, recordings(config.run, like.device))
    model = build_model(config.local.solver, config.local.memory, config.local.gamma, like)
    assert model is not None
    return LocalTrustRegion(model, config.local, config.trust_region, config.solver.consistent, like, timers)


def build_metric(config: Config, like: Tensor, batches: int) -> Metric | None:
    """The metric of a sweep's steps; None for other solvers, and on minibatches, whose gradients at two points are of other data."""
    if config.local.solver != "sweep" or not config.local.memory or batches > 1:
        return None
    return Metric(config.local.memory, like)


def build_momentum(config: Config, like: Tensor, subdomains: int) -> Momentum:
    """The momentum of the summed steps: with a sweep's, whose predicted decrease follows from the slope, and their mean; else s~ = s."""
    return Momentum(like, has_momentum(config, subdomains))


def build_model(name: str, memory: int, gamma: float, like: Tensor) -> Model | None:
    """The quadratic model of a trust-region step, with curvature ``gamma`` before its first pair; None for "none"."""
    if name == "none":
        return None
    if name == "first":
        return FirstOrder(like.numel(), like.dtype, like.device)
    return LSR1(like.numel(), memory, like.dtype, like.device, gamma_init=gamma)
