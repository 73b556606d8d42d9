"""The learning rate over the epochs."""

from __future__ import annotations

import math

from apts_mpi.config import Config


class Schedule:
    """lr(e) after e epochs, e a fraction, with ``batches`` minibatches in an epoch and ``per_iteration`` in an outer iteration.

    constant: lr. step: lr decay^floor(e / step). cosine, with E the epochs of the run and q = lr_end:
    lr (q + (1 - q) (1 + cos(pi e / E)) / 2).
    """

    def __init__(self, config: Config, batches: int, per_iteration: int = 1) -> None:
        self._config = config.baseline
        limits = [float(config.stop.epochs), config.stop.iterations * per_iteration / batches]
        self._epochs = min((limit for limit in limits if limit), default=math.inf)

    def __call__(self, epochs: float) -> float:
        """The learning rate after ``epochs`` epochs."""
        c = self._config
        if c.schedule == "step":
            return c.lr * c.decay ** math.floor(epochs / c.step)
        if c.schedule == "cosine":
            wave = 0.5 * (1 + math.cos(math.pi * min(epochs / self._epochs, 1.0)))
            return c.lr * (c.lr_end + (1 - c.lr_end) * wave)
        return c.lr
