"""What the work of an outer iteration costs on a measured machine: a sum of measured constants, nothing is fitted to runs.

    seconds = gradients + values + model + vectors + messages + overhead

Blocking sums follow on what was computed before. The wire of an overlapped sum is hidden by what is left of the backward pass,
as ``parallel/emulate`` does it; its real sum is not, since ranks of one node do it with the cores that compute.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from apts_mpi.config import Config
from apts_mpi.network import Network, emulated
from apts_mpi.study.machine import Compute, Machine, between
from apts_mpi.study.work import Work, count

PARTS = ("gradients", "values", "model", "vectors", "messages", "overhead")
Send = Callable[[int], float]  # bytes -> seconds


@dataclass(frozen=True)
class Prediction:
    """Seconds of an outer iteration."""

    seconds: float
    parts: Mapping[str, float]  # by PARTS
    floor: float  # bare gradients of as many samples, and as many bare sums of n numbers
    work: Work
    note: str  # what stood in for a measurement that does not exist


def predict(
    machine: Machine, config: Config, n_params: int, ranks: int, samples: int, local_iters: float | None = None,
    network: Network | None = None,
) -> Prediction:  # fmt: skip
    """An outer iteration of ``config`` on ``ranks`` ranks and ``samples`` training samples; ValueError if the machine knows another model.

    ``local_iters``: mean local iterations of a subdomain, where they are known. ``network``: emulated on top of the real one;
    that of ``config`` unless given.
    """
    compute = checked(machine.rank(ranks), config, n_params)
    work = count(config, n_params, ranks, samples, local_iters)
    wire = network or emulated(config.comm, ranks)
    parts = price(work, compute, config.baseline.bucket, lambda nbytes: machine.sum_seconds(ranks, nbytes), wire)
    bare = machine.sum_seconds(ranks, n_params * compute.itemsize, bare=True)
    return Prediction(sum(parts.values()), parts, floor(work, compute, bare, wire), work, machine.note(ranks))


def checked(compute: Compute, config: Config, n_params: int) -> Compute:
    """``compute`` if it was measured for this model, else ValueError."""
    item = 8 if config.model.dtype == "float64" else 4
    if (compute.n_params, compute.itemsize) != (n_params, item):
        raise ValueError(
            f"the machine was measured for n = {compute.n_params} numbers of {compute.itemsize} bytes, this is n = {n_params} of {item}: "
            "run apts-mpi bench compute with the model of the study"
        )
    return compute


def price(work: Work, compute: Compute, bucket: int, real: Send, wire: Network | None) -> dict[str, float]:
    """Seconds by PARTS; ``real`` is what a sum takes, ``wire`` a network that adds to it."""
    ready, gradient_end = overlapped(work, compute, bucket)
    wired = (lambda nbytes: real(nbytes) + wire.seconds(nbytes)) if wire else real
    messages = sum(wired(message.bytes) for message in work.messages if not message.overlapped)
    if work.overlapped:
        messages += trailing(ready, gradient_end, work.tail * compute.itemsize, real, wire)
    return {
        "gradients": gradient_end + _evaluations(work, compute), "values": _values(work, compute),
        "model": work.model_starts * compute.lsr1_begin + sum(times * _lsr1(compute, pairs) for pairs, times in work.model_steps.items()),
        "vectors": sum(times * compute.vector[name] for name, times in work.vectors.items())
        + sum(times * compute.optimizer[name] for name, times in work.optimizer.items()),
        "messages": messages, "overhead": len(work.messages) * compute.message,
    }  # fmt: skip


def floor(work: Work, compute: Compute, bare: float, wire: Network | None) -> float:
    """Gradients in whole passes over the rank's samples, losses, and sums of n numbers."""
    size = work.largest * work.subdomains
    sums = work.reductions * (bare + (wire.seconds(compute.n_params * compute.itemsize) if wire else 0.0))
    values = sum(times * compute.values(samples) for samples, times in work.values.items())
    return work.gradient_samples / size * compute.gradients(size) + values + sums


def overlapped(work: Work, compute: Compute, bucket: int) -> tuple[list[tuple[float, int]], float]:
    """(moment, bytes) of each part of the overlapped gradient, and its end; nothing if there is none.

    Without measured parts of at least ``bucket`` bytes they are taken to be equal and evenly spread over the backward pass.
    """
    if not work.overlapped:
        return [], 0.0
    *moments, end = compute.ready(work.overlapped)
    if bucket == compute.parts.bucket:
        return list(zip(moments, compute.parts.bytes, strict=True)), end
    nbytes, forward = compute.n_params * compute.itemsize, compute.values(work.overlapped)
    parts = max(1, nbytes // bucket)
    return [(forward + (end - forward) * (i + 1) / parts, nbytes // parts) for i in range(parts)], end


def trailing(parts: list[tuple[float, int]], end: float, tail: int, real: Send, wire: Network | None) -> float:
    """Seconds from the ``end`` of the gradient until all parts, and ``tail`` bytes behind them, are summed and have arrived."""
    done = end + sum(real(nbytes) for _, nbytes in parts) + real(tail)
    free, arrived = 0.0, 0.0
    for moment, nbytes in [*parts, (end, tail)] if wire else []:
        assert wire is not None
        latency, on_wire = wire.parts(nbytes)
        free = max(free, moment) + on_wire
        arrived = max(arrived, free + latency)
    return max(done, arrived) - end


def _evaluations(work: Work, compute: Compute) -> float:
    """Gradients that nothing overlaps with, and the minibatches of all."""
    anew = _anew(work, compute)
    written = sum(times * (compute.gradients(size) + anew * between(compute.take, size)) for size, times in work.gradients.items())
    added = sum(times * (compute.added(size) + anew * between(compute.take, size)) for size, times in work.added.items())
    chosen = sum(times * (between(compute.select, size) - anew * between(compute.take, size)) for size, times in work.selects.items())
    return written + added + chosen + anew * (between(compute.take, work.overlapped) if work.overlapped else 0.0)


def _values(work: Work, compute: Compute) -> float:
    anew = _anew(work, compute)
    return sum(times * (compute.values(size) + anew * between(compute.take, size)) for size, times in work.values.items())


def _anew(work: Work, compute: Compute) -> bool:
    """Whether a subdomain's samples are too many to be kept normalised."""
    return work.largest * compute.numbers * compute.itemsize > compute.ready_bytes // work.subdomains


def _lsr1(compute: Compute, pairs: int) -> float:
    """A step with ``pairs`` pairs; along the last two measured ones beyond them."""
    return between(tuple(enumerate(compute.lsr1)), pairs)
