"""Sums of sample losses, and of their gradients, by pieces that fit the memory."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor

from apts_mpi.problem.flat import FlatModel
from apts_mpi.problem.losses import Loss
from apts_mpi.problem.pieces import piece
from apts_mpi.problem.samples import Samples
from apts_mpi.problem.share import Share
from apts_mpi.problem.watch import Watch
from apts_mpi.recording import Recordings

# Samples per forward and backward pass, fewer of a large model; memory does not grow with the subdomain. A GPU wants few launches.
PIECE = {"cpu": 1024, "cuda": 16_384}


class Evaluator:
    """Sums of sample losses and their gradient at any flat vector.

    Whoever asks for them counts the samples, since what is replayed from ``recordings`` passes by here.
    """

    def __init__(self, flat: FlatModel, loss: Loss, samples: Samples, recordings: Recordings | None = None) -> None:
        self.flat, self.loss, self.samples, self.recordings = flat, loss, samples, recordings or Recordings(None)
        self.gradient_samples = self.value_samples = 0

    @property
    def piece(self) -> int:
        """Samples per forward and backward pass."""
        return piece(self.flat, self.loss, self.samples, PIECE[self.flat.device.type])

    def write(self, theta: Tensor, grad: Tensor | None, data: Share, rows: range, weight: float) -> Tensor:
        """weight * sum of the losses of ``rows``, float64 on the device; ``grad`` is overwritten by its gradient."""
        if grad is None:
            return self.add(theta, None, data, rows, weight)
        first = range(rows.start, min(rows.start + self.piece, rows.stop))
        losses = self._write_piece(theta, grad, data, first, weight)
        return self.add(theta, grad, data, range(first.stop, rows.stop), weight, before=losses.detach().double().sum())

    def gradient(self, theta: Tensor, grad: Tensor, data: Share, rows: range, weight: float) -> None:
        """As ``write``, without the value."""
        if len(rows) > self.piece:
            self.write(theta, grad, data, rows, weight)
        else:
            self._write_piece(theta, grad, data, rows, weight)

    def add(
        self, theta: Tensor, grad: Tensor | None, data: Share, rows: range, weight: float, watch: Watch | None = None,
        before: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """As ``write``, but the gradient is added into ``grad``; ``before``: the sum of earlier losses, of which this goes on.

        ``watch`` looks on while the last piece's backward pass makes entries of ``grad`` final; with ``grad`` None it takes them away.

        Sample losses are computed in the run's dtype and summed in float64, because the ratio (6)
        compares nearly equal losses. Nothing is moved to the host.
        """
        step = self.piece
        self.flat.point(theta, grad)
        wanted = grad is not None or watch is not None
        total = torch.zeros((), dtype=torch.float64, device=self.flat.device) if before is None else before
        for start in range(rows.start, rows.stop, step):
            inputs, targets = data.take(range(start, min(start + step, rows.stop)))
            with torch.set_grad_enabled(wanted):
                losses = self.loss(self.flat.forward(inputs), targets)
            total = total + losses.detach().double().sum()
            if wanted:
                with watch if watch is not None and start + step >= rows.stop else nullcontext(), self.flat.forward.products():
                    torch.autograd.backward(losses, torch.full_like(losses, weight))
        return total * weight

    def _write_piece(self, theta: Tensor, grad: Tensor, data: Share, rows: range, weight: float) -> Tensor:
        """The losses of one piece; ``grad`` is neither cleared nor read first, at small batches a tenth of the time."""
        self.flat.point(theta, None)
        inputs, targets = data.take(rows)
        losses = self.loss(self.flat.forward(inputs), targets)
        with self.flat.forward.products():
            self.flat.write_gradient_(grad, losses, weight)
        return losses
