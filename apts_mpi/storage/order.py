"""Which sample goes where: a shuffle that depends on the seed alone, stratified on request."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


def shuffled(count: int, seed: int) -> Indices:
    """A permutation of 0..count-1, the same for ever: the ranks of raw PCG64 words, whose stream NumPy guarantees."""
    keys = np.random.PCG64(seed).random_raw(count)
    return np.argsort(keys, kind="stable").astype(np.int64)


def spread(order: Indices, labels: NDArray[Any]) -> Indices:
    """Reorder so that every contiguous block holds the classes in equal shares.

    The j-th of the n_c samples of class c gets the place (j + 1/2) / n_c; ``labels`` belong to the
    positions that ``order`` speaks of.
    """
    mine = labels[order]
    by_class = np.argsort(mine, kind="stable")
    sizes = np.bincount(mine)
    firsts = np.concatenate(([0], np.cumsum(sizes)[:-1]))
    place = np.empty(len(order))
    place[by_class] = (np.arange(len(order)) - np.repeat(firsts, sizes) + 0.5) / np.repeat(sizes, sizes)
    return order[np.argsort(place, kind="stable")]


def split_orders(splits: NDArray[np.uint8], labels: NDArray[Any] | None, held_out: int, seed: int) -> dict[str, Indices]:
    """For train and test the source positions in their order in the shards; only train is shuffled.

    ``splits`` is 0 train, 1 test, 2 to be cut, ``held_out`` of the last being drawn for the test;
    ``labels`` are given when the order is to be stratified.
    """
    train, test = np.flatnonzero(splits != 1), np.flatnonzero(splits == 1)
    order = train[shuffled(len(train), seed)]
    if labels is not None:
        order = spread(order, labels)
    if held_out:
        order, test = order[: len(order) - held_out], np.sort(order[len(order) - held_out :])
    return {"train": order, "test": test}
