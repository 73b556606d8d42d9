"""Hashes of a few contents of samples, chosen so that equal samples are chosen alike, whichever rank holds them."""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from apts_mpi.problem.order import mix
from apts_mpi.problem.samples import Samples

CHOSEN = 4096  # contents of the whole data set that are looked at
WORDS = 8  # of 8 bytes each, spread over a sample, decide whether it is chosen
PIECE = 4096  # samples at a time


def sketch(samples: Samples, owned: range, total: int) -> list[tuple[float, int]]:
    """(hash, number) of the chosen ones of ``owned``, about CHOSEN of all ``total`` samples; a hash is a whole number below 2^53.

    Inputs and targets count. No more than CHOSEN come from here, those of the smallest hashes.
    """
    limit = np.uint64(min(2.0**64 - 2048, 2.0**64 * CHOSEN / total))
    found: list[tuple[float, int]] = []
    for start in range(owned.start, owned.stop, PIECE):
        numbers = np.arange(start, min(start + PIECE, owned.stop), dtype=np.int64)
        rows = samples.rows(numbers)
        inputs, targets = _bytes(samples.inputs[rows]), _bytes(samples.targets[rows])
        for i in np.flatnonzero(_choice(inputs) <= limit):
            digest = blake2b(inputs[i].tobytes() + targets[i].tobytes(), digest_size=8).digest()
            found.append((float(int.from_bytes(digest) >> 11), int(numbers[i])))
    return sorted(found)[:CHOSEN]


def _bytes(values: Tensor) -> NDArray[np.uint8]:
    """(samples, bytes), on the host."""
    flat = np.ascontiguousarray(values.detach().cpu().numpy())
    return flat.reshape(len(flat), -1).view(np.uint8)


def _choice(inputs: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """A word that depends on a few bytes of each sample alone."""
    size, chosen = inputs.shape[1], np.zeros(len(inputs), np.uint64)
    for j in range(WORDS):
        part = inputs[:, j * size // WORDS :][:, :8]
        word = np.zeros((len(inputs), 8), np.uint8)
        word[:, : part.shape[1]] = part
        with np.errstate(over="ignore"):
            chosen = mix(chosen + word.view(np.uint64)[:, 0] + np.uint64(j + 1))
    return chosen
