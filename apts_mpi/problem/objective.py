"""f(theta; D) of eq. (1) and its subdomain parts: sample losses of a model on resident data."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import numpy as np
import torch
from torch import Tensor

from apts_mpi.partition import block, check_batch, head_size, minibatches
from apts_mpi.problem.evaluator import Evaluator
from apts_mpi.problem.order import Order
from apts_mpi.problem.samples import Samples
from apts_mpi.problem.share import Share
from apts_mpi.problem.watch import Ready, Watch

READY_BYTES = {"cpu": 2**28, "cuda": 2**30}  # of a rank: a subdomain's current samples are normalised once if they fit in its share of this


class DataSubdomain:
    """One subdomain; implements ``contracts.Subdomain``."""

    def __init__(self, evaluator: Evaluator, own: Order, neighbour: Order | None, ready_bytes: int) -> None:
        self._evaluator, self._own, self._neighbour = evaluator, own, neighbour
        self._share = Share(evaluator.samples, ready_bytes)
        self._chunks: list[range] = []
        self._weights: dict[tuple[float, ...], Tensor] = {}
        self._value = torch.zeros((), dtype=torch.float64, device=evaluator.flat.device)
        self.size = self.borrowed = self.total = 0

    @property
    def weight(self) -> float:
        return self.size / self.total

    def select(self, epoch: int, batch: int, total: int) -> None:
        """Make the current samples those of a minibatch with ``total`` samples over all subdomains."""
        owned = np.concatenate(self._own.of_batch(epoch, batch))
        borrowed = self._neighbour.of_batch(epoch, batch)[0] if self._neighbour else owned[:0]
        self.size, self.borrowed, self.total = len(owned), len(borrowed), total
        self._share.select(self._evaluator.samples.rows(np.concatenate([owned, borrowed])))
        self._chunks = []

    def owned(self, theta: Tensor, grad: Tensor | None) -> Tensor:
        return self._sum(theta, grad, range(self.size), 1 / self.total)

    def owned_in_parts(self, theta: Tensor, grad: Tensor, nbytes: int, ready: Ready) -> Tensor:
        one = self.size <= self._evaluator.piece  # backward pass: it writes, several add
        watch = Watch(self._evaluator.flat, nbytes, ready, grad if one else None)
        if not one:
            grad.zero_()
        value = self._evaluator.add(theta, None if one else grad, self._share, range(self.size), 1 / self.total, watch)
        watch.finish()
        self._evaluator.gradient_samples += self.size
        return value

    def local_from_owned(self, theta: Tensor, value: float, grad: Tensor, out: Tensor) -> Tensor:
        count = self.size + self.borrowed
        torch.mul(grad, self.total / count, out=out)
        extra = self._evaluator.add(theta, out, self._share, range(self.size, count), 1 / count)
        self._evaluator.gradient_samples += self.borrowed
        return extra + value * (self.total / count)

    def local(self, theta: Tensor, grad: Tensor | None) -> Tensor:
        count = self.size + self.borrowed
        return self._sum(theta, grad, range(count), 1 / count)

    def cut(self, chunks: int) -> int:
        self._chunks = [block(self.size, chunks, j) for j in range(chunks)]
        if self.borrowed:
            self._chunks.append(range(self.size, self.size + self.borrowed))
        return len(self._chunks)

    def owned_by_chunk(self, theta: Tensor, grad: Tensor, kept: Tensor) -> Tensor:
        shares = [len(rows) / self.total if rows.stop <= self.size else 0.0 for rows in self._chunks]
        weights = self._like(tuple(shares), kept)

        def work() -> Tensor:
            values = torch.zeros((), dtype=torch.float64, device=theta.device)
            for j, rows in enumerate(self._chunks):
                value = self._evaluator.write(theta, kept[j], self._share, rows, 1 / len(rows))
                if rows.stop <= self.size:
                    values += value * shares[j]
            torch.mv(kept[: len(shares)].T, weights, out=grad)
            return values

        self._evaluator.gradient_samples += sum(map(len, self._chunks))
        return self._repeated((theta.data_ptr(), grad.data_ptr(), kept.data_ptr(), *shares), work, grad, kept[: len(shares)])

    def chunk_gradient(self, index: int, theta: Tensor, grad: Tensor) -> None:
        rows = self._chunks[index]
        self._evaluator.gradient(theta, grad, self._share, rows, 1 / len(rows))

    def _sum(self, theta: Tensor, grad: Tensor | None, rows: range, weight: float) -> Tensor:
        """weight * sum of the losses of ``rows`` and, unless None, its gradient into ``grad``; counted."""
        if grad is None:
            self._evaluator.value_samples += len(rows)
        else:
            self._evaluator.gradient_samples += len(rows)
        key = (theta.data_ptr(), 0 if grad is None else grad.data_ptr(), len(rows), weight)
        results = () if grad is None else (grad,)
        return self._repeated(key, lambda: self._evaluator.write(theta, grad, self._share, rows, weight), *results)

    def _repeated(self, key: Sequence[float], work: Callable[[], Tensor], *results: Tensor) -> Tensor:
        """The value that ``work`` gives, which leaves ``results`` too; from a recording where there is one.

        ``key``: every number that the work takes, and where the vectors lie that it reads and writes.
        """
        recordings = self._evaluator.recordings
        place = self.place() if recordings.active else None
        if place is None:
            return work()

        def valued() -> None:
            self._value.copy_(work())

        recordings.run((place, self._value.data_ptr(), *key), valued, *results, self._value)
        return self._value.clone()

    def _like(self, values: tuple[float, ...], kept: Tensor) -> Tensor:
        """``values`` as a tensor like ``kept``, the same one for the same values: a recording reads it where it lies."""
        if values not in self._weights:
            self._weights[values] = torch.tensor(values, dtype=kept.dtype, device=kept.device)
        return self._weights[values]

    def place(self) -> Hashable | None:
        samples = self._share.place()
        return None if samples is None else (*samples, *((rows.start, rows.stop) for rows in self._chunks))

    def count_chunk(self, index: int) -> None:
        self._evaluator.gradient_samples += len(self._chunks[index])


class DataObjective:
    """The subdomains of one rank; implements ``contracts.Objective``."""

    def __init__(self, evaluator: Evaluator, orders: Sequence[Order], mine: range, batches: int) -> None:
        self._evaluator, self._orders, self._batches = evaluator, orders, batches
        self.n_params = evaluator.flat.n_params
        count = len(orders)
        has_halo = count > 1 and orders[0].overlap > 0
        neighbours = [orders[(i + 1) % count] if has_halo else None for i in mine]
        ready = READY_BYTES[evaluator.flat.device.type] // max(1, len(mine))
        self._subdomains = [DataSubdomain(evaluator, orders[i], other, ready) for i, other in zip(mine, neighbours, strict=True)]
        self._selected: tuple[int, int] | None = None
        self._totals: dict[int, int] = {}  # |D| of each minibatch

    @property
    def subdomains(self) -> Sequence[DataSubdomain]:
        return self._subdomains

    @property
    def batches(self) -> int:
        return self._batches

    @property
    def samples(self) -> Samples:
        """All that this rank holds."""
        return self._evaluator.samples

    @property
    def gradient_samples(self) -> int:
        return self._evaluator.gradient_samples

    @property
    def value_samples(self) -> int:
        return self._evaluator.value_samples

    def select(self, epoch: int, batch: int) -> None:
        key = (0, 0) if self._batches == 1 else (epoch, batch)
        if key == self._selected:
            return
        self._selected = key
        for subdomain in self._subdomains:
            subdomain.select(epoch, batch, self._total(batch))

    @property
    def selected(self) -> bool:
        """Whether there is current data."""
        return self._selected is not None

    @property
    def batch_samples(self) -> int:
        """|D| of a minibatch, over all subdomains and with its overlap into the next; the mean of the first ones, which differ a little."""
        first = range(min(self._batches, 50))
        return round(sum(map(self._total, first)) / len(first))

    def _total(self, batch: int) -> int:
        if batch not in self._totals:
            self._totals[batch] = sum(batch_size(order, batch) for order in self._orders)
        return self._totals[batch]


def batch_size(order: Order, batch: int) -> int:
    """|O_i| of one minibatch, from block arithmetic alone: every rank knows every subdomain's."""
    if order.batches == 1:
        return len(order.indices)
    sizes = [(len(block(len(part), order.batches, batch)), len(block(len(part), order.batches, (batch + 1) % order.batches)))
             for part in (order.head, order.rest)]  # fmt: skip
    return sum(mine + min(following, head_size(mine, order.overlap)) for mine, following in sizes)


def plan(samples: int, subdomains: int, *, batch: int, overlap: float, seed: int) -> list[Order]:
    """The orders of all N subdomains of a training set; ValueError if a minibatch would leave one empty."""
    check_batch(samples, subdomains, batch, overlap)
    return [Order(block(samples, subdomains, i), overlap, minibatches(samples, batch), seed) for i in range(subdomains)]


def needed_ranges(orders: Sequence[Order], mine: range) -> list[range]:
    """What a rank with the subdomains ``mine`` must hold: their block, and the head of the next one."""
    own = range(orders[mine.start].indices.start, orders[mine.stop - 1].indices.stop)
    halo = orders[mine.stop % len(orders)].head if len(orders) > 1 else range(0)
    return [own, halo]
