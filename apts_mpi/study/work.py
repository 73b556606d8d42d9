"""What one rank does in an outer iteration, counted from the settings: the steps of every method as ``solver`` takes them.

Counted is an iteration in which nothing ends early: all local iterations are made and accepted, all trials are tried.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeVar

from apts_mpi.config import Config
from apts_mpi.contracts import CHECKS, LANE, TAIL
from apts_mpi.identity import has_momentum
from apts_mpi.partition import block
from apts_mpi.study.shares import Share, batches, shares

K = TypeVar("K", int, str)


class Tally(dict[K, float]):
    """How often each thing is done; a mean number of times is no whole number."""

    def add(self, what: K, times: float = 1.0) -> None:
        """``times`` more of ``what``."""
        self[what] = self.get(what, 0.0) + times

    def each(self, things: Iterable[K]) -> None:
        """One more of each."""
        for what in things:
            self.add(what)


@dataclass(frozen=True)
class Message:
    """A sum over the ranks."""

    bytes: int
    vector: bool  # False: scalars and flags alone
    overlapped: bool = False  # with the gradient of ``Work.overlapped`` samples


@dataclass
class Work:
    """Of one rank in one outer iteration: how often what is done. Samples are those of one call."""

    gradients: Tally[int] = field(default_factory=Tally)  # samples -> times
    added: Tally[int] = field(default_factory=Tally)  # gradients that are added to another vector
    overlapped: int = 0  # samples of the gradient whose parts leave while it is computed
    values: Tally[int] = field(default_factory=Tally)
    selects: Tally[int] = field(default_factory=Tally)  # fresh minibatches
    model_steps: Tally[int] = field(default_factory=Tally)  # pairs in the memory -> quasi-Newton steps
    model_starts: int = 0  # inner products of a gradient with a full memory
    optimizer: Tally[str] = field(default_factory=Tally)
    vectors: Tally[str] = field(default_factory=Tally)  # operation on n numbers -> times
    messages: list[Message] = field(default_factory=list)
    tail: int = TAIL  # cells behind the vector of a message
    subdomains: int = 1
    largest: int = 0  # samples of a subdomain, most

    @property
    def gradient_samples(self) -> float:
        """Samples whose gradient is evaluated."""
        return sum(size * times for part in (self.gradients, self.added) for size, times in part.items()) + self.overlapped

    @property
    def value_samples(self) -> float:
        """Samples whose loss alone is evaluated."""
        return sum(size * times for size, times in self.values.items())

    @property
    def reductions(self) -> int:
        """Sums of n-vectors."""
        return sum(message.vector for message in self.messages)


def count(
    config: Config, n_params: int, ranks: int, samples: int, local_iters: float | None = None, *, batch: int | None = None,
    rank: int | None = None,
) -> Work:  # fmt: skip
    """The work of outer iteration ``batch`` of an epoch over ``samples`` training samples; ValueError if they are too few.

    Without ``batch`` and ``rank`` that of the last minibatch on the last rank: none is larger.

    ``local_iters`` is the mean number of local iterations of a subdomain, where it is known, in place of the configured one.
    In full batch it is an iteration behind the first.
    """
    number, period = batches(config, samples), config.baseline.period if config.method == "local-sgd" else 1
    if number > 1:
        period = min(period, number)
        first = number - period if batch is None else batch * period
        minibatches = [shares(config, ranks, samples, k, rank) for k in range(first, min(first + period, number))]
    else:
        minibatches = [shares(config, ranks, samples, 0, rank)] * period
    checked, subdomains = config.safety.checksum and ranks > 1, config.solver.subdomains or ranks
    work = _Counting(config, n_params, minibatches[0], number > 1, checked, config.method == "apts" and has_momentum(config, subdomains))
    if config.method == "apts":
        work.apts(local_iters)
    elif config.method == "trust-region":
        work.trust_region()
    elif config.method == "local-sgd":
        work.local_sgd(minibatches)
    else:
        work.all_reduce()
    return work.done


def chunk_sizes(config: Config, share: Share) -> list[int]:
    """The chunks of a sweep, the borrowed samples being one more."""
    local = config.local
    chunks = min(max(round(share.owned / local.chunk), local.chunks_min, 1), local.chunks_max, share.owned)
    return [len(block(share.owned, chunks, j)) for j in range(chunks)] + ([share.borrowed] if share.borrowed else [])


class _Counting:
    """Goes through the steps of a method as its solver does."""

    def __init__(self, config: Config, n_params: int, shares: list[Share], fresh: bool, checked: bool, momentum: bool) -> None:
        self.config, self.shares, self.fresh, self.checked, self.momentum = config, shares, fresh, checked, momentum
        self.sweep = config.method == "apts" and config.local.solver == "sweep"
        self.done = Work(subdomains=len(shares), largest=max(share.size for share in shares))
        item = 8 if config.model.dtype == "float64" else 4
        self.done.tail = tail = TAIL + checked * LANE * len(CHECKS)
        self.large, self.small = Message(item * (n_params + tail), True), Message(item * tail, False)
        if fresh and config.method != "local-sgd":
            self.done.selects.each(share.size for share in shares)

    def passes(self, **times: float) -> None:
        """Operations on n-vectors."""
        for name, more in times.items():
            if more:
                self.done.vectors.add(name, more)

    def apts(self, local_iters: float | None) -> None:
        kind = self.config.global_step.solver
        if self.fresh:
            self.evaluate(True)  # A
        for share in self.shares:  # B
            if self.sweep:
                self.sweep_steps(share)
            else:
                self.local_steps(share, self.config.local.iters if local_iters is None else local_iters)
        self.passes(mul=len(self.shares) * (self.config.solver.combine == "mean"))
        self.pack()  # C
        self.passes(copy=1 + self.momentum, dot=self.sweep + 2 * self.momentum, add=1 + self.momentum)
        self.evaluate(kind != "none" or not self.fresh)  # D
        memory = self.config.local.memory
        if self.sweep and not self.fresh and memory:  # a pair for the metric: its products, then Q
            self.passes(copy=1, sub=1, combine=4 * memory + 2 * memory * memory)
        self.passes(copy=1, dot=1)
        if kind != "none":
            self.trial(kind)  # E

    def trust_region(self) -> None:
        if self.fresh:
            self.evaluate(True)
        self.trial(self.config.global_step.solver)

    def all_reduce(self) -> None:
        done, sizes = self.done, [share.owned for share in self.shares]
        if self.config.baseline.overlap:
            done.overlapped = sizes.pop()
        done.gradients.each(sizes)
        self.pack(in_place=True, overlapped=self.config.baseline.overlap)
        self.passes(dot=1)
        done.optimizer.add(self.config.method)

    def local_sgd(self, minibatches: list[list[Share]]) -> None:
        done, count = self.done, len(self.shares)
        for minibatch in minibatches:
            done.gradients.each(share.size for share in minibatch)
            if self.fresh:
                done.selects.each(share.size for share in minibatch)
        done.optimizer.add("sgd", count * len(minibatches))
        self.passes(copy=count, sub=count, mul=count)
        self.pack()
        self.passes(dot=1, add=1)

    def trial(self, kind: str) -> None:
        """A global step: proposed, tried, judged, learnt from."""
        done, wants = self.done, kind == "lsr1" or not self.fresh
        if kind == "lsr1":
            done.model_starts += 1
            done.model_steps.add(self.config.global_step.memory)
        else:
            self.passes(square=1 + (wants and self.config.method == "apts"), mul=1)
        self.passes(add=1)
        self.evaluate(wants)
        self.passes(copy=1)

    def evaluate(self, gradient: bool) -> None:
        """f over all ranks, with one message."""
        done = self.done
        if not gradient:
            done.values.each(share.owned for share in self.shares)
            done.messages.append(self.small)
            return
        for share in self.shares:
            chunks = chunk_sizes(self.config, share) if self.sweep else [share.owned]
            done.gradients.each(chunks)
            self.passes(combine=len(chunks) * self.sweep)
        self.pack()
        self.passes(copy=1, dot=1)

    def pack(self, in_place: bool = False, overlapped: bool = False) -> None:
        """Sum the rank's own terms into the message; a single one that is made there stays where it is."""
        count = len(self.shares)
        self.passes(add=count - 1, copy=count > 1 or not in_place, checksum=self.checked)
        self.done.messages.append(Message(self.large.bytes, True, overlapped))

    def local_steps(self, share: Share, iters: float) -> None:
        """The local trust region: from the shares of A, then ``iters`` trials of its own."""
        done, local, consistent = self.done, self.config.local, self.config.solver.consistent
        if share.borrowed:
            done.added.add(share.borrowed)
        done.gradients.add(share.size, iters)
        self.passes(mul=1, sub=consistent, copy=consistent, zero=1, square=1)
        self.passes(reach=iters, add=iters * consistent, copy=math.ceil(iters) % 2)  # two vectors take turns, if all trials are accepted
        if local.solver == "first":
            self.passes(mul=iters, square=iters)
            return
        for step in range(math.ceil(iters)):
            done.model_steps.add(min(step, local.memory), min(1.0, iters - step))

    def sweep_steps(self, share: Share) -> None:
        """Chunk by chunk; the first step takes the gradient that is known."""
        chunks = chunk_sizes(self.config, share)
        steps = self.config.local.passes * len(chunks)
        self.done.added.each((chunks * self.config.local.passes)[1:])
        self.passes(copy=2, zero=1, lerp=steps, length=steps, addcmul=steps, sub=steps)
        if not self.fresh:  # the metric, once its memory is full
            self.passes(combine=2 * steps * self.config.local.memory)
