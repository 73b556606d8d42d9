"""How many samples go through the model at once: as many as keep no more memory than is sensible."""

from __future__ import annotations

import torch
from torch import Tensor

from apts_mpi.problem.flat import FlatModel
from apts_mpi.problem.losses import Loss
from apts_mpi.problem.samples import Samples

BYTES = {"cpu": 2**28, "cuda": 2**30}  # that the values kept for a backward pass may take


def piece(flat: FlatModel, loss: Loss, samples: Samples, most: int) -> int:
    """Samples of one pass, a power of two below ``most`` or ``most`` itself; the same on every rank, since shapes decide it."""
    if flat.kept is None:
        flat.kept = kept_bytes(flat, loss, samples)
    fitting = BYTES[flat.device.type] // max(1, flat.kept)
    return most if fitting >= most else 1 << max(0, fitting.bit_length() - 1)


def kept_bytes(flat: FlatModel, loss: Loss, samples: Samples) -> int:
    """What a forward pass keeps for the backward pass, for each sample more; parameters and constants are the same for any number."""
    inputs, targets = samples.few(1).take(slice(None))
    two, four = (_kept(flat, loss, inputs, targets, count) for count in (2, 4))
    return (four - two) // 2


def _kept(flat: FlatModel, loss: Loss, inputs: Tensor, targets: Tensor, count: int) -> int:
    """Bytes of all storages that are kept, each once, while ``count`` copies of a sample go through."""
    held: dict[int, int] = {}

    def keep(values: Tensor) -> Tensor:
        held[values.untyped_storage().data_ptr()] = values.untyped_storage().nbytes()
        return values.detach()  # itself it would keep its graph alive for ever, and so the parameters' stream

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda values: values):
        losses = loss(flat.module(torch.cat([inputs] * count)), torch.cat([targets] * count))
    total = sum(held.values())
    del losses  # until here, else a storage could take the place of another
    return total
