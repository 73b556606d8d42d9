"""A loss and a method that go wrong when told to, and what a process holds; for campaigns that hurt runs from inside."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from mpi4py import MPI
from torch import Tensor

from apts_mpi.config import Config
from apts_mpi.contracts import State, StepInfo
from apts_mpi.solver.build import Stepper, build_stepper

PAGE = os.sysconf("SC_PAGE_SIZE")
counts = {"calls": 0, "before": 0, "nan at": -1, "inf at": -1}  # of the loss


class _Blast(torch.autograd.Function):
    """The identity, with an infinite gradient."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return values.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad * torch.inf


def loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy of each sample; nan, or with an infinite gradient, in the call that was named in ``counts``."""
    values = torch.nn.functional.cross_entropy(outputs, targets, reduction="none")
    counts["calls"] += 1
    if counts["calls"] == counts["nan at"]:
        return values * torch.nan
    return _Blast.apply(values) if counts["calls"] == counts["inf at"] else values  # type: ignore[no-any-return,no-untyped-call]


def rearm() -> int:
    """An iteration begins: what was armed in the last one is no longer. The last call of this one, if it has as many as that."""
    calls = counts["calls"]
    last, counts["before"] = 2 * calls - counts["before"], calls
    counts["nan at"] = counts["inf at"] = -1
    return last


class Hurt:
    """The configured method, which calls ``before(k, theta)`` ahead of outer iteration k; also a ``solver.build.Resumable``."""

    def __init__(self, before: Callable[[int, Tensor], None], config: Config, problem: Any, *parts: Any) -> None:
        comm, timers, wishes = parts
        self._before, self._batches = before, problem.objective.batches
        self._inner: Any = build_stepper(config, problem.theta, problem.objective, comm, timers, problem.subdomains, wishes)

    @property
    def theta(self) -> Tensor:
        found: Tensor = self._inner.theta
        return found

    def step(self, epoch: int = 0, batch: int = 0) -> StepInfo:
        self._before(epoch * self._batches + batch, self.theta)
        info: StepInfo = self._inner.step(epoch, batch)
        return info

    def state(self) -> State:
        found: State = self._inner.state()
        return found

    def restore_(self, state: State) -> None:
        self._inner.restore_(state)

    def recall_(self) -> None:
        self._inner.recall_()


def maker(before: Callable[[int, Tensor], None]) -> Callable[..., Stepper]:
    """For ``run_training``."""
    return lambda *parts: Hurt(before, *parts)


def flip(theta: Tensor, entry: int, bit: int) -> None:
    """Turn one bit of an entry."""
    kind = {torch.float32: torch.int32, torch.float64: torch.int64}[theta.dtype]
    cells = theta.view(kind)
    cells[entry] ^= torch.tensor(1, dtype=kind) << bit


class Counting(MPI.Intracomm):
    """A communicator that counts those made of it and not freed."""

    alive = 0

    def Dup(self, *args: Any) -> Any:
        Counting.alive += 1
        return Counting(super().Dup(*args))

    def Split(self, *args: Any) -> Any:
        Counting.alive += 1
        return Counting(super().Split(*args))

    def Split_type(self, *args: Any) -> Any:
        Counting.alive += 1
        return Counting(super().Split_type(*args))

    def Free(self) -> None:
        Counting.alive -= 1
        super().Free()


def held() -> dict[str, int]:
    """What this process holds: open descriptors, threads, bytes of resident memory, communicators."""
    gc.collect()
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * PAGE
    return {
        "descriptors": len(os.listdir("/proc/self/fd")), "threads": len(os.listdir("/proc/self/task")), "resident": resident,
        "communicators": Counting.alive, "python threads": threading.active_count(),
    }  # fmt: skip
