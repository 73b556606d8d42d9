"""Arithmetic of a model, counted while it runs once, and what the machine can do."""

from __future__ import annotations

from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from apts_mpi.problem.flat import FlatModel
from apts_mpi.problem.losses import Loss
from apts_mpi.problem.samples import Samples

COUNTED = 2  # samples; one alone would meet special cases of shapes
SIZES = {"cpu": 1024, "cuda": 8192}  # of the square matrices
SECONDS = 0.2  # of the peak's measurement


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up torch's own formulas, as FlopCounterMode does, which would first import the compiler: a second or more."""

    total = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here; true would import torch._dynamo

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        return out


def count(flat: FlatModel, loss: Loss, samples: Samples, theta: Tensor) -> tuple[float, float]:
    """Operations of one sample's (loss and gradient, loss alone) at ``theta``: matrix products and convolutions. Not collective."""
    few = samples.few(COUNTED)
    inputs, targets = few.take(slice(None))
    flat.point(theta, torch.zeros_like(theta))
    with _Counter() as counter:  # type: ignore[no-untyped-call]
        losses = loss(flat.module(inputs), targets)
        forward = counter.total
        torch.autograd.backward(losses, torch.ones_like(losses))
    return counter.total / len(targets), forward / len(targets)


def measured_peak(dtype: torch.dtype, device: torch.device) -> float:
    """Operations per second of the best of several square matrix products in ``dtype``, with the run's threads. Not collective."""
    size = SIZES[device.type]
    a, b = (torch.full((size, size), 1e-3, dtype=dtype, device=device) for _ in range(2))
    out = torch.empty_like(a)
    best, end = _seconds(a, b, out), perf_counter() + SECONDS  # the first one may start libraries
    while perf_counter() < end:
        best = min(best, _seconds(a, b, out))
    return 2 * size**3 / best


def _seconds(a: Tensor, b: Tensor, out: Tensor) -> float:
    start = perf_counter()
    torch.mm(a, b, out=out)
    if out.is_cuda:
        torch.cuda.synchronize(out.device)
    return perf_counter() - start
