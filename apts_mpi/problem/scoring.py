"""Loss and accuracy on held-out samples."""

from __future__ import annotations

import torch
from torch import Tensor

from apts_mpi.problem.flat import FlatModel
from apts_mpi.problem.losses import Loss, correct, is_classification
from apts_mpi.problem.pieces import piece
from apts_mpi.problem.samples import Samples

PIECE = 2048  # samples per forward pass, fewer of a large model


def score(flat: FlatModel, loss: Loss, samples: Samples, theta: Tensor) -> tuple[float, float, float]:
    """(sum of losses, number of right predictions, number of samples) over all ``samples`` at ``theta``.

    The number of right predictions is nan if the targets are no class labels.
    """
    flat.point(theta, None)
    step = piece(flat, loss, samples, PIECE) if len(samples.targets) else PIECE
    total = torch.zeros(2, dtype=torch.float64, device=flat.device)
    classes = is_classification(samples.targets)
    with torch.no_grad():
        for start in range(0, len(samples.targets), step):
            inputs, targets = samples.take(slice(start, start + step))
            outputs = flat.forward(inputs)
            total[0] += loss(outputs, targets).double().sum()
            total[1] += correct(outputs, targets) if classes else torch.nan
    return float(total[0]), float(total[1]), float(len(samples.targets))
