"""Per-sample losses and scores, by name, by path, or any callable."""

from __future__ import annotations

import copy
import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Loss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """-log softmax(outputs)[target] per sample, shape (B,); for sequences (B, T, V) the mean over T. ValueError for a single class."""
    if outputs.shape[-1] == 1 and outputs.ndim > 1:
        raise ValueError("loss cross_entropy of one output is always zero: it needs a score per class; for numbers set model.loss to mse")
    if outputs.ndim > 2:
        classes = outputs.shape[-1]
        losses = functional.cross_entropy(outputs.reshape(-1, classes), targets.reshape(-1), reduction="none")
        return losses.view(targets.shape).flatten(1).mean(1)
    return functional.cross_entropy(outputs, targets, reduction="none")


def mse(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean over a sample's outputs of (output - target)^2, shape (B,); ValueError if there is not a target for each output."""
    if outputs.numel() != targets.numel():
        shapes = f"outputs have shape {tuple(outputs.shape)}, targets {tuple(targets.shape)}"
        raise ValueError(f"loss mse needs a number for every output: {shapes}; for class labels use cross_entropy")
    return (outputs - targets.view_as(outputs)).square().reshape(len(outputs), -1).mean(1)


BY_NAME: dict[str, Loss] = {"cross_entropy": cross_entropy, "mse": mse}


def resolve_loss(loss: str | Loss) -> Loss:
    """A per-sample loss from a name, ``package.module:function``, a torch.nn loss module or its class, or a callable.

    A torch loss module is asked for ``reduction="none"``. A callable that returns one number is taken
    as the mean over the samples it was given. Raises ValueError for an unknown name and for what cannot be called.
    """
    given = loss
    if isinstance(loss, str):
        loss = BY_NAME[loss] if loss in BY_NAME else import_path(loss, "model.loss", list(BY_NAME))
    if isinstance(loss, type):
        try:
            loss = loss()
        except TypeError as error:
            raise ValueError(f"model.loss {given!r} is a class that needs arguments, pass an instance: {error}") from error
    if not callable(loss):
        raise ValueError(f"model.loss must be a name or a function of (outputs, targets), got {given!r}")
    if hasattr(loss, "reduction"):
        loss = copy.copy(loss)
        loss.reduction = "none"
    return _per_sample(loss)


def _per_sample(loss: Loss) -> Loss:
    def losses(outputs: Tensor, targets: Tensor) -> Tensor:
        values = loss(outputs, targets)
        if values.ndim == 0:
            return values.expand(len(outputs))
        return values if values.ndim == 1 else values.flatten(1).mean(1)

    return losses


def import_path(path: str, key: str, names: list[str]) -> Any:
    """The object at ``package.module:attribute``, also in the working directory; ValueError names the config key and the known names."""
    module, colon, attribute = path.partition(":")
    if not colon:
        raise ValueError(f"{key} must be one of {', '.join(names)} or package.module:attribute, got {path!r}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as ``python -m`` does; the installed command does not
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{key} = {path!r} cannot be imported: {error}") from error


def correct(outputs: Tensor, targets: Tensor) -> Tensor:
    """Number of right predictions as a float64 scalar; sequences count the share of right positions."""
    hits = (outputs.argmax(-1) == targets).double()
    return hits.flatten(1).mean(1).sum() if hits.ndim > 1 else hits.sum()


def is_classification(targets: Tensor) -> bool:
    """Integer targets are class labels."""
    return not targets.dtype.is_floating_point and targets.dtype != torch.bool
