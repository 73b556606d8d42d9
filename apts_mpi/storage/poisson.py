"""A problem with a known answer: -Laplace u = f in the unit square, u = 0 on its border, in float64.

    u(x, y) = sum over modes (a, b, c) of c sin(a pi x) sin(b pi y),    f = sum of (a^2 + b^2) pi^2 times the same

A sample is a point; its target is f there, for a model whose output is -Laplace u, or u itself, for a plain fit.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from apts_mpi.storage.files import digest_of
from apts_mpi.storage.manifest import Layout
from apts_mpi.storage.sources import Array, Batch, Options, Source, batch_size

MODES = ((1, 1, 1.0), (2, 3, 0.5))
TEST = 4  # a test point for so many training points
_PLASTIC = 1.3247179572447460  # g^3 = g + 1


def points(start: int, stop: int) -> Array:
    """Points start..stop-1 of a sequence that fills the open square evenly: frac(1/2 + n / g^k), g^3 = g + 1 (Roberts 2018)."""
    steps = np.array([1 / _PLASTIC, 1 / _PLASTIC**2])
    numbers: Array = (0.5 + np.arange(start + 1, stop + 1)[:, np.newaxis] * steps) % 1.0
    return numbers


def answer(x: Array) -> Array:
    """u at the points x (samples, 2)."""
    return sum((c * _mode(x, a, b) for a, b, c in MODES), np.zeros(len(x)))


def right_hand_side(x: Array) -> Array:
    """f = -Laplace u at the points x (samples, 2)."""
    return sum((c * (a**2 + b**2) * np.pi**2 * _mode(x, a, b) for a, b, c in MODES), np.zeros(len(x)))


def _mode(x: Array, a: int, b: int) -> Array:
    wave: Array = np.sin(a * np.pi * x[:, 0]) * np.sin(b * np.pi * x[:, 1])
    return wave


def open_poisson(options: Options) -> Source:
    """``options.points`` points to train and a fourth as many others to test, taken as they are whatever the normalisation."""
    counts = {"train": options.points, "test": max(1, options.points // TEST)}
    target = answer if options.answer else right_hand_side

    def stream() -> Iterator[Batch]:
        start, step = 0, batch_size(24)
        for split, count in counts.items():
            for first in range(start, start + count, step):
                x = points(first, min(first + step, start + count))
                yield Batch(split, x, target(x))
            start += count

    layout = Layout((2,), (), "<f8", "<f8", 0, (), 1.0)
    name = f"Poisson's equation, {'u' if options.answer else 'f'} at {options.points} points"
    return Source(name, digest_of([name, MODES]), layout, counts, stream, as_is=True)
