"""Which samples a subdomain uses in which minibatch, from (seed, epoch, sample index) alone.

A subdomain owns a block of consecutive samples. Its first share, the *head*, is what the left
neighbour borrows. In every epoch head and rest are ordered by a hash of (seed, epoch, index) and
cut into as many slices as there are minibatches, so each minibatch holds its share of both, and
what a neighbour needs stays the same small set of samples throughout. Nothing depends on ranks.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from apts_mpi.partition import block, head_size

Indices = NDArray[np.int64]


def mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The splitmix64 finaliser: a bijection of 64-bit words that looks random."""
    with np.errstate(over="ignore"):
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return values ^ (values >> np.uint64(31))


def shuffled(seed: int, epoch: int, indices: range) -> Indices:
    """``indices`` in the order of hash(seed, epoch, index), shape (len(indices),)."""
    ids = np.arange(indices.start, indices.stop, dtype=np.uint64)
    salt = mix(mix(np.array([seed % 2**64], dtype=np.uint64)) + np.uint64(epoch))
    return ids[np.argsort(mix(ids + salt), kind="stable")].astype(np.int64)


@dataclass(frozen=True)
class Order:
    """The owned block of one subdomain, its head, and their slices."""

    indices: range  # the block, in numbers of the training set
    overlap: float
    batches: int
    seed: int
    _kept: dict[range, tuple[int, Indices]] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def head(self) -> range:
        """What the left neighbour borrows."""
        return self.indices[: head_size(len(self.indices), self.overlap)]

    @property
    def rest(self) -> range:
        return self.indices[head_size(len(self.indices), self.overlap) :]

    def of_batch(self, epoch: int, batch: int) -> tuple[Indices, Indices]:
        """(head part, rest part) of minibatch ``batch``, with the overlap into the next minibatch."""
        return self._slice(self.head, epoch, batch), self._slice(self.rest, epoch, batch)

    def _slice(self, part: range, epoch: int, batch: int) -> Indices:
        if self.batches == 1:
            return np.arange(part.start, part.stop, dtype=np.int64)
        order = self._shuffled(epoch, part)
        mine = block(len(order), self.batches, batch)
        following = block(len(order), self.batches, (batch + 1) % self.batches)
        borrowed = following[: head_size(len(mine), self.overlap)]
        return np.concatenate([order[mine.start : mine.stop], order[borrowed.start : borrowed.stop]])

    def _shuffled(self, epoch: int, part: range) -> Indices:
        """The order of ``part`` in an epoch, sorted once for all its minibatches."""
        kept = self._kept.get(part)
        if kept is None or kept[0] != epoch:
            kept = self._kept[part] = epoch, shuffled(self.seed, epoch, part)
        return kept[1]
