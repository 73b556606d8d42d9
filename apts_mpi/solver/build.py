"""From the config to the solver's parts."""

from __future__ import annotations

from torch import Tensor

from apts_mpi.config import Config
from apts_mpi.contracts import Timers
from apts_mpi.solver.local import LocalSolver, LocalTrustRegion
from apts_mpi.solver.lsr1 import LSR1
from apts_mpi.solver.model import FirstOrder, Model
from apts_mpi.solver.sweep import Sweep


def build_local(config: Config, like: Tensor, timers: Timers) -> LocalSolver:
    """The local solver that ``local.solver`` names; ``like`` gives n, dtype and device."""
    if config.local.solver == "sweep":
        return Sweep(config.local, like)
    model = build_model(config.local.solver, config.local.memory, config.local.gamma, like)
    assert model is not None
    return LocalTrustRegion(model, config.local, config.trust_region, config.solver.consistent, like, timers)


def build_model(name: str, memory: int, gamma: float, like: Tensor) -> Model | None:
    """The quadratic model of a trust-region step, with curvature ``gamma`` before its first pair; None for "none"."""
    if name == "none":
        return None
    if name == "first":
        return FirstOrder(like.numel(), like.dtype, like.device)
    return LSR1(like.numel(), memory, like.dtype, like.device, gamma_init=gamma)
