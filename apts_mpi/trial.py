"""Before the run: try the model on a few samples, look at all of them, and say what is odd about the data."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from apts_mpi.baseline import ALL_REDUCE
from apts_mpi.config import Config
from apts_mpi.contracts import Communicator
from apts_mpi.parallel.devices import allotted_gpus, crowds
from apts_mpi.partition import block
from apts_mpi.problem.doubles import sketch
from apts_mpi.problem.flat import FlatModel, random_layers
from apts_mpi.problem.losses import is_classification
from apts_mpi.problem.samples import Samples
from apts_mpi.problem.scoring import score

if TYPE_CHECKING:
    from apts_mpi.assembly import Problem

TRIED = 64  # samples of a rank on which the model is tried
LOOKED = 4096  # samples looked at together for nan and inf
CLASSES = 10_000  # beyond it classes are not counted
DOUBLE = 0.01  # share of contents that may be in several subdomains without a word


def check_model(problem: Problem) -> None:
    """Try the model at its first parameters on a few of this rank's samples; ValueError says what is wrong with it.

    Inputs, targets, loss and gradient must be finite. The loss must be the same when evaluated twice and leave all buffers alone:
    else it is no function of the parameters. Labels must be outputs of the model. Not collective.
    """
    flat, few = problem.flat, problem.objective.samples.few(TRIED)
    flat.point(problem.theta, None)
    hint = _tokens(problem) or _fractional(problem.objective.samples)
    for held, split in ((problem.objective.samples, "training"), (problem.test, "test")):
        if held is not None and len(held.targets):  # a rank may have no test sample
            _check_finite(held, split)
            if is_classification(held.targets):
                _check_labels(flat, held, split, hint)
    before = {name: buffer.clone() for name, buffer in flat.module.named_buffers()}
    with first_samples(hint):
        first, second = (score(flat, problem.loss, few, problem.theta)[0] for _ in range(2))
    if abs(first - second) > 1e-6 * abs(first):
        named = random_layers(flat.module)
        where = f" (layers {', '.join(named)})" if named else ""
        raise ValueError(f"the model is random at fixed parameters{where}: loss {first:.9g}, then {second:.9g}; switch dropout off")
    for name, buffer in flat.module.named_buffers():
        if name not in before or not torch.equal(buffer.nan_to_num(), before[name].nan_to_num()):
            raise ValueError(
                f"buffer {name} changes whenever the model is evaluated, so the loss is no function of the parameters; "
                "switch running statistics off, or train in evaluation mode (model.eval())"
            )
    _check_start(problem, few, first)


def _check_start(problem: Problem, few: Samples, loss: float) -> None:
    """ValueError names the first parameter that, or whose gradient, holds nan or inf; or says that the loss does."""
    flat = problem.flat
    name = flat.first_nonfinite(problem.theta)
    if name:
        raise ValueError(f"parameter {name} holds nan or inf at the start")
    if not math.isfinite(loss):
        raise ValueError(f"the loss of the first samples is {loss} at the start: are all inputs finite?")
    grad = torch.zeros_like(problem.theta)
    with first_samples():
        inputs, targets = few.take(slice(0, TRIED))
        losses = problem.loss(flat.module(inputs), targets)
        flat.write_gradient_(grad, losses, 1 / max(len(losses), 1))
    name = flat.first_nonfinite(grad)
    if name:
        raise ValueError(f"the gradient with respect to parameter {name} holds nan or inf at the start, though the loss is {loss:.9g}")


def notes(problem: Problem, config: Config, comm: Communicator, threads: int) -> list[str]:
    """What is allowed but worth a word: of the samples, the minibatches, the ``threads`` of a rank and its device. Every rank calls."""
    samples = [*_doubles(problem, comm), *_absent(problem, comm), *_batches(problem, config)]
    return [*samples, *_crowds(problem, config, comm, threads), *_gpus(problem, config)]


def _batches(problem: Problem, config: Config) -> Iterator[str]:
    """Notes on a minibatch that is all the data, and on a method of many small steps that makes one an epoch."""
    if config.data.batch > problem.samples:
        yield f"data.batch = {config.data.batch} is more than the {problem.samples} training samples: full batch"
    if config.method in ALL_REDUCE and problem.objective.batches == 1:
        yield f"{config.method} in full batch makes one step an epoch; data.batch, such as 128, makes it more"


def _crowds(problem: Problem, config: Config, comm: Communicator, threads: int) -> Iterator[str]:
    """A note on ranks whose threads share cores, which slows all of them down."""
    if problem.theta.device.type == "cpu":
        for host, ranks, cores in crowds(comm, threads):
            most = max(1, cores // ranks)
            key = "--run.threads " if config.run.threads else "OMP_NUM_THREADS="
            less = f"; {key}{most} leaves each thread a core" if threads > most and ranks <= cores else ""
            yield f"{ranks} ranks of {threads} threads share the {cores} cores of {host}{less}"


def _gpus(problem: Problem, config: Config) -> Iterator[str]:
    """A note on GPUs that the job has and torch does not see, on this rank."""
    if problem.theta.device.type == "cpu" and config.run.device == "auto" and (told := allotted_gpus()):
        yield (
            f"Slurm gave this job GPUs ({told}), but torch {torch.__version__} sees none: the ranks compute on the CPU; "
            "install torch for CUDA or ROCm, or set --run.device cpu"
        )


def _doubles(problem: Problem, comm: Communicator) -> Iterator[str]:
    """A note if samples of different numbers, in different subdomains, are the same; what an overlap borrows is not meant.

    Each rank sends hashes of the same small choice of contents, so that all copies of one are seen.
    """
    mine = sketch(problem.objective.samples, problem.owned, problem.samples)
    rows = comm.gather([float(value) for pair in mine for value in pair])
    blocks = [block(problem.samples, problem.subdomains, i).start for i in range(problem.subdomains)]
    where: dict[float, set[int]] = {}
    for row in rows:
        for digest, number in zip(row[::2], row[1::2], strict=True):
            where.setdefault(digest, set()).add(int(np.searchsorted(blocks, number, side="right")) - 1)
    shared = Counter(pair for found in where.values() if len(found) > 1 for pair in [tuple(sorted(found)[:2])])
    if shared.total() > DOUBLE * len(where):
        first = min(shared, key=lambda pair: (-shared[pair], pair))
        ranks = [next(rank for rank in range(comm.size) if i in block(problem.subdomains, comm.size, rank)) for i in first]
        yield (
            f"about {100 * shared.total() / len(where):.0f} % of the samples are in several subdomains with other numbers, such as "
            f"{first[0]} (rank {ranks[0]}) and {first[1]} (rank {ranks[1]}): is a file in the data set twice? "
            "An overlap of subdomains is asked for with data.overlap"
        )


def _absent(problem: Problem, comm: Communicator) -> Iterator[str]:
    """A note if the model has classes that no training sample has."""
    held = problem.objective.samples
    if not is_classification(held.targets) or held.targets.ndim != 1:
        return
    with torch.no_grad():
        classes = problem.flat.module(held.few(1).take(slice(0, 1))[0]).shape[-1]
    if not 2 <= classes <= CLASSES:
        return
    counts = torch.bincount(held.targets.long(), minlength=classes).double().tolist()
    absent = [i for i, column in enumerate(zip(*comm.gather(counts), strict=True)) if not any(column)]
    if absent:
        yield f"no training sample has one of {len(absent)} of the {classes} classes: {', '.join(map(str, absent[:10]))}"


@contextmanager
def first_samples(hint: str = "") -> Iterator[None]:
    """What the model or the loss raises inside becomes ValueError: all ranks hear of it, in one sentence; a full memory MemoryError."""
    try:
        yield
    except (RuntimeError, TypeError, LookupError, AttributeError, AssertionError) as error:
        text = str(error) or type(error).__name__
        told = MemoryError(text) if _is_full(error) else ValueError(f"the model or the loss failed on the first samples: {text}{hint}")
        raise told from error


@contextmanager
def enough_memory() -> Iterator[None]:
    """A device that is full raises RuntimeError: inside it becomes MemoryError, of which all ranks hear."""
    try:
        yield
    except RuntimeError as error:
        if not _is_full(error):
            raise
        raise MemoryError(str(error)) from error


def _is_full(error: Exception) -> bool:
    return "out of memory" in str(error) or "allocate memory" in str(error)


def _tokens(problem: Problem) -> str:
    """What may be wrong, should a model without an Embedding fail on characters."""
    if not problem.data.tokens or any(isinstance(layer, nn.Embedding | nn.EmbeddingBag) for layer in problem.flat.module.modules()):
        return ""
    return "; the samples are characters, whole numbers that a model must embed: model.name = transformer does"


def _fractional(held: Samples) -> str:
    """What may be wrong, should the loss fail on one floating-point number a sample: labels are integers."""
    if held.targets.ndim != 1 or is_classification(held.targets):
        return ""
    rows = (held.targets != held.targets.round()).nonzero().flatten()
    first = f" (training sample {held.number(int(rows[0]))} has {float(held.targets[rows[0]]):g})" if len(rows) else ""
    return f"; for numbers set model.loss to mse, and if they are class labels they must be of an integer type{first}"


def _check_finite(held: Samples, name: str) -> None:
    """ValueError names the first sample that holds nan or inf."""
    for what, values in (("inputs", held.inputs), ("targets", held.targets)):
        for start in range(0, len(values) if values.dtype.is_floating_point else 0, LOOKED):
            part = values[start : start + LOOKED]
            rows = (~torch.isfinite(part.reshape(len(part), -1)).all(1)).nonzero().flatten()
            if len(rows):
                raise ValueError(f"{name} sample {held.number(start + int(rows[0]))} holds nan or inf in its {what}")


def _check_labels(flat: FlatModel, held: Samples, name: str, hint: str) -> None:
    """ValueError names the first sample whose label is no output of the model, if the model gives a score per class."""
    with torch.no_grad(), first_samples(hint):
        outputs: Tensor = flat.module(held.few(1).take(slice(0, 1))[0])
    classes = outputs.shape[-1]
    if outputs.ndim != held.targets.ndim + 1 or classes < 2:
        return
    bad = ((held.targets < 0) | (held.targets >= classes)).flatten(1 if held.targets.ndim > 1 else 0)
    rows = (bad.any(1) if bad.ndim > 1 else bad).nonzero().flatten()
    if len(rows):
        row = int(rows[0])
        raise ValueError(f"{name} sample {held.number(row)} has label {held.targets[row].tolist()}, the model has classes 0..{classes - 1}")
