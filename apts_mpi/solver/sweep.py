"""The sweep: chunk by chunk through the subdomain with variance-reduced gradients and momentum."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping

import torch
from torch import Tensor

from apts_mpi.config import LocalConfig
from apts_mpi.contracts import Subdomain
from apts_mpi.native import kernels
from apts_mpi.recording import Recordings
from apts_mpi.solver.local import LocalResult, LocalStart
from apts_mpi.solver.metric import Metric
from apts_mpi.solver.vectors import dot, dot64, norm


class Sweep:
    """nu = passes * chunks normalised momentum steps whose total length is the ball's radius Delta.

    For j = 0..nu-1 and chunk C = C_{j mod chunks} (numerics: eq. (3)-(4) with the chunk in place of D_i):
    g_j = grad f(theta_j; C) - grad f(theta_k; C) + grad f(theta_k; D), m = beta m + (1 - beta) g_j, d = P m,
    theta_{j+1} = theta_j - (Delta / nu) d / ||d||. So ||s_i|| <= Delta, and Delta is the step size. P is the ``metric``, if
    the start has one, else I.
    The path is as long as the radius whatever happens: one that ends nearer than ``trust_region.reached`` of it has turned, and
    longer steps would turn more. The predicted decrease of the summed step is half the linear one, -<g, s~> / 2.
    """

    predicts, full_length = False, True

    def __init__(self, config: LocalConfig, like: Tensor, recordings: Recordings) -> None:
        self._config, self._recordings = config, recordings
        self._point, self._momentum, self._fresh, self._change, self._grad = (torch.zeros_like(like) for _ in range(5))
        self._stride = like.new_zeros(())  # length of a step, on the device: a recording reads it there

    def chunk_count(self, subdomain: Subdomain) -> int:
        """About ``chunk`` samples each, within the bounds on their number."""
        wanted = round(subdomain.size / self._config.chunk)
        return min(max(wanted, self._config.chunks_min, 1), self._config.chunks_max, subdomain.size)

    def solve(self, start: LocalStart, out: Tensor) -> LocalResult:
        """The local step into ``out``, (n,)."""
        chunks = start.subdomain.cut(self.chunk_count(start.subdomain))
        steps = self._config.passes * chunks
        self._stride.fill_(start.ball / steps)
        self._grad.copy_(start.grad)  # which lies now here, now there
        self._recordings.run(self._key(start, out), lambda: self._walk(start, chunks, out), out)
        for j in range(1, steps):
            start.subdomain.count_chunk(j % chunks)
        length: Tensor | float
        if out.is_cuda:  # without a stop
            length = dot64(out, out).sqrt()
            out.mul_((start.ball / length).clamp(max=1.0).to(out.dtype))
            length = length.clamp(max=start.ball)
        elif (length := norm(out)) > start.ball:  # by the rounding of many small steps
            out.mul_(start.ball / length)
            length = start.ball
        return LocalResult(decrease=0.0, length=length, iters=steps, accepted=steps)

    def _walk(self, start: LocalStart, chunks: int, out: Tensor) -> None:
        """All steps, without a decision of the host."""
        point = self._point.copy_(start.theta)
        self._momentum.zero_()
        compiled = self._launched if point.is_cuda else self._fused
        step = compiled if kernels.compiled(point) else self._plain
        for j in range(self._config.passes * chunks):
            i = j % chunks
            if j == 0:  # at theta_k, where g_0 is the global gradient
                self._fresh.copy_(start.chunks[i])
            else:
                start.subdomain.chunk_gradient(i, point, self._fresh)
            step(start.chunks[i], start.metric)
        torch.sub(point, start.theta, out=out)

    def _plain(self, kept: Tensor, metric: Metric | None) -> None:
        """Momentum and point, from the fresh gradient of a chunk and the ``kept`` one; nothing reaches the host."""
        change = torch.sub(self._fresh, kept, out=self._change).add_(self._grad)
        momentum = self._momentum.lerp_(change, 1 - self._config.momentum)
        direction = metric.apply(momentum) if metric is not None else momentum
        length = torch.dot(direction, direction).sqrt_().clamp_(min=torch.finfo(direction.dtype).tiny)
        torch.addcmul(self._point, direction, torch.div(self._stride, length, out=length), value=-1, out=self._point)

    def _fused(self, kept: Tensor, metric: Metric | None) -> None:
        """The same with a compiled kernel, in host memory: two passes over vectors in place of five."""
        direction = momentum = self._momentum
        square = float(kernels.blend_(momentum, self._fresh, kept, self._grad, self._config.momentum))
        if metric is not None and metric.rank:
            direction = metric.apply(momentum)
            square = dot(direction, direction)
        length = max(math.sqrt(square), torch.finfo(direction.dtype).tiny) if square >= 0 else math.nan
        self._point.add_(direction, alpha=-float(self._stride) / length)

    def _launched(self, kept: Tensor, metric: Metric | None) -> None:
        """The same with kernels of a GPU: two launches, and those of the metric."""
        direction = self._momentum
        squares = kernels.blend_(direction, self._fresh, kept, self._grad, self._config.momentum)
        if metric is not None and metric.rank:
            direction = metric.apply(direction)
            squares = kernels.square(direction)
        assert isinstance(squares, Tensor)
        kernels.advance_(self._point, direction, self._stride, squares)

    def _key(self, start: LocalStart, out: Tensor) -> Hashable | None:
        """Everything that a walk reads, by its place in memory; its steps follow from the cut of the samples."""
        place = start.subdomain.place()
        vectors = (start.theta, start.chunks, out)
        rows = start.metric.rows if start.metric is not None else 0
        return None if place is None else (place, rows, *(vector.data_ptr() for vector in vectors))

    def state(self, index: int) -> dict[str, Tensor]:
        """Nothing: the momentum starts anew in every solve."""
        return {}

    def restore_(self, index: int, state: Mapping[str, Tensor]) -> None:
        """Nothing to remember."""
