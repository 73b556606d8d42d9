"""From data, model and config to this rank's share of the problem.

Whatever can go wrong on one rank alone (a missing file, a full memory) runs inside ``together``,
which makes it an error of all ranks, so that nobody waits for a rank that has left.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from apts_mpi.arithmetic import Arithmetic
from apts_mpi.config import Config
from apts_mpi.contracts import Communicator
from apts_mpi.partition import block, check_counts
from apts_mpi.problem import flops
from apts_mpi.problem.evaluator import Evaluator
from apts_mpi.problem.flat import FlatModel
from apts_mpi.problem.losses import Loss, is_classification, resolve_loss
from apts_mpi.problem.objective import DataObjective, needed_ranges, plan
from apts_mpi.problem.samples import Samples
from apts_mpi.recording import recordings
from apts_mpi.solver.build import check_method
from apts_mpi.trial import enough_memory, first_samples

if TYPE_CHECKING:
    from apts_mpi.storage.shards import Split

Values = Tensor | np.ndarray[Any, Any]


class Source(Protocol):
    """Samples by number."""

    @property
    def samples(self) -> int:
        """How many there are."""

    def read(self, lo: int, hi: int) -> tuple[Any, Any]:
        """Inputs and targets of samples lo..hi-1 as arrays or tensors."""


@dataclass(frozen=True)
class ArraySource:
    """Samples in memory, the same on all ranks."""

    inputs: Tensor
    targets: Tensor

    @property
    def samples(self) -> int:
        return len(self.inputs)

    def read(self, lo: int, hi: int) -> tuple[Tensor, Tensor]:
        return self.inputs[lo:hi], self.targets[lo:hi]


@dataclass(frozen=True)
class Data:
    """A training set, a test set if there is one, and how samples become inputs of the model."""

    train: Source
    test: Source | None
    scale: Tensor | None  # inputs * scale + shift; None: as they are
    shift: Tensor | None
    tokens: bool
    fingerprint: str
    name: str
    sample_shape: tuple[int, ...]
    outputs: int  # classes, or numbers to predict

    @property
    def in_memory(self) -> bool:
        """Whether a program gave tensors, and not the settings a data set."""
        return isinstance(self.train, ArraySource)


@dataclass
class Problem:
    """What one rank needs to train."""

    flat: FlatModel
    objective: DataObjective
    loss: Loss
    test: Samples | None
    theta: Tensor
    data: Data
    samples: int  # of the training set
    subdomains: int
    mine: range  # the subdomains of this rank
    owned: range  # and their samples
    arithmetic: Arithmetic = Arithmetic()  # of one sample; unknown before ``measure``

    @property
    def scored(self) -> bool:
        """Whether there is a test set with class labels, and so an accuracy."""
        return self.test is not None and is_classification(self.test.targets)


def from_shards(train: Split, test: Split | None, form: str, limit: int, fingerprint: str, name: str) -> Data:
    """A data set of shards, normalised by the stored constants: (x / scale - mean) / std."""
    constants = train.normalisation(form)
    tokens = bool(train.target_shape) and train.classes > 0
    shape = (-1, *[1] * (len(train.sample_shape) - 1)) if len(constants.mean) > 1 else ()
    mean, std = (torch.tensor(values, dtype=torch.float64).reshape(shape) for values in (constants.mean, constants.std))
    if limit:
        train.samples = min(limit, train.samples)
    outputs = train.classes or math.prod(train.target_shape)
    return Data(train, test, 1 / (constants.scale * std), -mean / std, tokens, fingerprint, name, train.sample_shape, outputs)


def from_tensors(inputs: Values, targets: Values, test: tuple[Values, Values] | None, module: nn.Module) -> Data:
    """A data set in memory, taken as it is; integers are tokens of a ``module`` with an Embedding. ValueError if they do not fit."""
    train = _pair(inputs, targets, module)
    if test is not None and not (isinstance(test, tuple | list) and len(test) == 2):
        raise ValueError(f"test must be a pair (inputs, targets), got {type(test).__name__}")
    held = _pair(*test, module) if test is not None else None
    digest = hashlib.sha256()
    for values in (train.inputs, train.targets, *((held.inputs, held.targets) if held else ())):
        digest.update(f"{tuple(values.shape)}{values.dtype}".encode())
        digest.update(values.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    tokens, shape = not train.inputs.dtype.is_floating_point, tuple(train.inputs.shape[1:])
    return Data(train, held, None, None, tokens, digest.hexdigest(), "tensors in memory", shape, 0)


def _pair(inputs: Values, targets: Values, module: nn.Module) -> ArraySource:
    """Samples as tensors without a history, labels as int64; ValueError if lengths or types do not fit."""
    x, y = (_tensor(values).detach() for values in (inputs, targets))
    if x.ndim == 0 or y.ndim == 0 or len(x) != len(y) or len(x) == 0:
        sizes = [len(values) if values.ndim else "a single number" for values in (x, y)]
        raise ValueError(f"inputs and targets must have the same positive length, got {sizes[0]} and {sizes[1]}")
    if x.is_complex() or y.is_complex():
        raise ValueError("inputs and targets must be real, got complex numbers")
    embeds = any(isinstance(layer, nn.Embedding | nn.EmbeddingBag) for layer in module.modules())
    if not x.dtype.is_floating_point and not (embeds and x.dtype in (torch.int32, torch.int64)):
        told = f"inputs have dtype {x.dtype}; convert images to float first, such as inputs.float() / 255"
        raise ValueError(f"{told} (tokens are int32 or int64, for a model with an Embedding)")
    return ArraySource(x, y.long() if is_classification(y) else y)


def build(
    data: Data, module: nn.Module, loss: str | Loss, config: Config, comm: Communicator, device: torch.device, sharers: int = 1
) -> Problem:
    """This rank's share of the problem; nothing is sent. ValueError, OSError or MemoryError on one rank alone.

    ``sharers``: so many ranks compute on ``device``.
    """
    samples, subdomains = data.train.samples, config.solver.subdomains or comm.size
    check_counts(samples, subdomains, comm.size)
    dtype = torch.float64 if config.model.dtype == "float64" else torch.float32
    with enough_memory():
        flat = FlatModel(module, dtype, device, config.model)
    overlap = config.data.overlap if config.method in ("apts", "trust-region") else 0.0  # nothing is gained by it in the others
    orders = plan(samples, subdomains, batch=config.data.batch, overlap=overlap, seed=config.run.seed)
    check_method(config, orders[0].batches, device)
    mine = block(subdomains, comm.size, comm.rank)
    owned = range(orders[mine.start].indices.start, orders[mine.stop - 1].indices.stop)
    home = {"device": device, "place": config.data.place, "sharers": sharers}
    resident = _resident(data, data.train, needed_ranges(orders, mine), dtype, **home)
    resolved = resolve_loss(loss)
    evaluator = Evaluator(flat, resolved, resident, recordings(config.run, device))
    objective = DataObjective(evaluator, orders, mine, orders[0].batches)
    test = None
    if data.test is not None:
        test = _resident(data, data.test, [block(data.test.samples, comm.size, comm.rank)], dtype, **home)
    return Problem(flat, objective, resolved, test, flat.initial(), data, samples, subdomains, mine, owned)


def _resident(data: Data, source: Source, ranges: Sequence[range], dtype: torch.dtype, **home: Any) -> Samples:
    """The samples of some ranges, read one after the other and kept in stored form; ``home``: where, as ``Samples`` takes it."""
    kept = [part for part in ranges if len(part)] or [range(0)]  # a small test set may leave a rank without samples
    parts = [source.read(part.start, part.stop) for part in kept]
    inputs, targets = (torch.cat([_tensor(part[i]) for part in parts]) for i in (0, 1))
    with enough_memory():
        return Samples(kept, inputs, targets, dtype=dtype, scale=data.scale, shift=data.shift, tokens=data.tokens, **home)


def _tensor(values: Values) -> Tensor:
    """Tensors as they are; arrays share their memory, but for those that must not be written."""
    if isinstance(values, np.ndarray) and not values.flags.writeable:
        values = values.copy()
    try:
        return torch.as_tensor(values)
    except TypeError as error:
        raise ValueError(f"inputs and targets must be tensors or arrays of numbers: {error}") from error


def measure(problem: Problem, peak: bool) -> Arithmetic:
    """The arithmetic of one sample and, if asked, what a matrix product reaches on this rank.

    Not collective, but for the peak all ranks call at once: cores share memory and power.
    """
    with first_samples():
        gradient, value = flops.count(problem.flat, problem.loss, problem.objective.samples, problem.theta)
    with problem.flat.forward.products():  # as the network's own
        reached = flops.measured_peak(problem.theta.dtype, problem.theta.device) if peak else math.nan
    return Arithmetic(gradient, value, reached)
