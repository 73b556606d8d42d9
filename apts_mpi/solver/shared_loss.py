"""f(theta; D) over all subdomains and ranks, with what the local solvers can reuse of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from apts_mpi import timing
from apts_mpi.contracts import Objective, Subdomain, Timers
from apts_mpi.solver.exchange import Exchange
from apts_mpi.solver.vectors import dot, to_host

ChunkCount = Callable[[Subdomain], int]


@dataclass
class Point:
    """f, its gradient, and the subdomains' shares of both, at one theta.

    grad: (n,). shares: per subdomain (n,), the gradient of sum_{O_i} loss / |D|; they add up to ``grad``.
    values: the same for f. chunks: per subdomain (chunks, n), mean gradients of its chunks, if kept.
    """

    grad: Tensor
    shares: list[Tensor]
    chunks: list[Tensor]
    values: list[float]
    loss: float = math.nan
    grad_square: float = 0.0  # ||grad||^2

    @property
    def finite(self) -> bool:
        """No nan or inf in the loss nor, as its norm would show, anywhere in the gradient."""
        return math.isfinite(self.loss) and math.isfinite(self.grad_square)


class SharedLoss:
    """The global objective: one evaluation is one pass over the rank's samples and one message.

    ``here`` belongs to the current iterate, ``there`` to the last trial point, until its vectors are lent to the local solvers.
    ``move`` makes the trial current, so no point is evaluated twice on the same data. Every rank calls every method alike.
    ``chunk_count`` says how many chunks of each subdomain keep their gradients; None keeps none.
    """

    def __init__(self, objective: Objective, exchange: Exchange, timers: Timers, chunk_count: ChunkCount | None) -> None:
        self._objective, self._exchange, self._timers, self._chunk_count = objective, exchange, timers, chunk_count
        self.here, self.there = self._new_point(), self._new_point()
        if objective.batches > 1:  # a minibatch's chunk gradients are used before its first trial alone
            self.there.chunks = self.here.chunks

    def select(self, epoch: int, batch: int) -> None:
        """Make D a minibatch, and cut its subdomains into chunks if their gradients are kept."""
        self._objective.select(epoch, batch)
        if self._chunk_count is None:
            return
        for i, subdomain in enumerate(self._objective.subdomains):
            chunks = subdomain.cut(self._chunk_count(subdomain))
            for point in (self.here, self.there):
                if len(point.chunks[i]) < chunks:
                    point.chunks[i] = point.grad.new_zeros(chunks, self._objective.n_params)

    def evaluate(self, theta: Tensor, gradient: bool = True) -> Point:
        """f(theta; D), and its gradient unless told otherwise, as ``there``."""
        point = self.there
        with self._timers(timing.EVALUATE):
            point.values[:] = to_host([self._evaluate_share(i, theta, gradient) for i in range(len(point.values))])
        vector = self._exchange.sum_(point.shares if gradient else None, loss=point.values)
        point.loss, point.grad_square = self._exchange.get("loss"), 0.0
        if gradient:
            point.grad.copy_(vector)
            point.grad_square = dot(vector, vector)
        return point

    def begin(self, theta: Tensor) -> None:
        """Make ``theta`` the current point on the data at hand, as a run that comes from a checkpoint does in full batch."""
        self.select(0, 0)
        self.evaluate(theta)
        self.move()

    def move(self) -> None:
        """The trial point becomes the current one."""
        self.here, self.there = self.there, self.here

    def _evaluate_share(self, i: int, theta: Tensor, gradient: bool) -> Tensor:
        subdomain, point = self._objective.subdomains[i], self.there
        if not gradient:
            return subdomain.owned(theta, None)
        if self._chunk_count is None:
            return subdomain.owned(theta, point.shares[i])
        return subdomain.owned_by_chunk(theta, point.shares[i], point.chunks[i])

    def _new_point(self) -> Point:
        n, count = self._exchange.message.vector, len(self._objective.subdomains)
        empty = n.new_zeros(0, n.numel())
        return Point(torch.zeros_like(n), [torch.zeros_like(n) for _ in range(count)], [empty] * count, [0.0] * count)
