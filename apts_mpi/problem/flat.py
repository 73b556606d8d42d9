"""A module whose trainable parameters are views of one flat vector."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from apts_mpi.config import ModelConfig
from apts_mpi.problem.forward import Forward

PLAIN = ModelConfig()


@dataclass(frozen=True)
class Slot:
    """Where one named parameter lives in the flat vector."""

    name: str
    shape: tuple[int, ...]
    offset: int
    size: int


class FlatModel:
    """Evaluate a module at any flat vector, without copying parameters.

    ``theta`` and ``grad`` given to :meth:`point` are contiguous (n_params,) tensors of ``dtype`` on
    ``device``. Tied weights count once; parameters that do not require a gradient stay as they are.
    """

    def __init__(self, module: nn.Module, dtype: torch.dtype, device: torch.device, config: ModelConfig = PLAIN) -> None:
        _refuse(module)
        self.module = module.to(device=device, dtype=dtype)
        self.forward = Forward(self.module, dtype, config)
        self._parameters = [(name, p) for name, p in self.module.named_parameters() if p.requires_grad]
        if not self._parameters:
            raise ValueError("the model has no parameter that requires a gradient: nothing to train")
        self.slots = _layout(self._parameters)
        self._sizes = [slot.size for slot in self.slots]
        self.n_params = sum(self._sizes)
        self.dtype, self.device = dtype, device
        self.kept: int | None = None  # bytes that a backward pass needs of a sample, once somebody has measured it

    @property
    def layout(self) -> str:
        """A hash of names, shapes and order: equal on all ranks or the flat vectors mean different things."""
        text = ";".join(f"{slot.name}{slot.shape}" for slot in self.slots) + str(self.dtype)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def fixed(self) -> str:
        """A hash of what ``theta`` does not hold: names, shapes and bytes of frozen parameters and buffers."""
        digest = hashlib.sha256()
        frozen = [(name, p) for name, p in self.module.named_parameters() if not p.requires_grad]
        for name, values in [*frozen, *self.module.named_buffers()]:
            digest.update(f"{name}{tuple(values.shape)}{values.dtype};".encode())
            digest.update(values.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def initial(self) -> Tensor:
        """The module's present parameters as one new flat vector."""
        return torch.cat([p.detach().reshape(-1) for _, p in self._parameters]).contiguous()

    def views(self, theta: Tensor) -> dict[str, Tensor]:
        """Named views of ``theta`` in the parameters' shapes."""
        parts = torch.split(theta, self._sizes)
        return {slot.name: part.view(slot.shape) for slot, part in zip(self.slots, parts, strict=True)}

    def point(self, theta: Tensor, grad: Tensor | None) -> None:
        """Make the module compute at ``theta`` and accumulate its gradient into ``grad``."""
        parts = torch.split(theta, self._sizes)
        grads = [None] * len(parts) if grad is None else torch.split(grad, self._sizes)
        for (_, p), slot, part, g in zip(self._parameters, self.slots, parts, grads, strict=True):
            p.data = part.view(slot.shape)
            p.grad = None if g is None else g.view(slot.shape)

    def write_gradient_(self, grad: Tensor, losses: Tensor, weight: float) -> None:
        """Overwrite ``grad`` (n,) by the gradient of ``weight`` times the sum of ``losses``; zeros for unused parameters."""
        parameters = [p for _, p in self._parameters]
        found = torch.autograd.grad(losses, parameters, torch.full_like(losses, weight), allow_unused=True)
        views = list(self.views(grad).values())
        used = [i for i, value in enumerate(found) if value is not None]
        if len(used) < len(views):
            grad.zero_()
        torch._foreach_copy_([views[i] for i in used], [found[i] for i in used])

    def on_gradient(self, act: Callable[[int], None], into: Tensor | None = None) -> list[RemovableHandle]:
        """Call ``act(i)`` when a backward pass has added its part to the gradient of slot i; ``remove()`` the handles afterwards.

        With ``into`` (n,) that part is first moved there, over what stood in it.
        """
        views = None if into is None else list(self.views(into).values())

        def arrived(p: Tensor, i: int) -> None:
            if views is not None and p.grad is not None:
                views[i].copy_(p.grad)
                p.grad = None
            act(i)

        return [p.register_post_accumulate_grad_hook(lambda p, i=i: arrived(p, i)) for i, (_, p) in enumerate(self._parameters)]  # type: ignore[no-untyped-call]

    def restore(self, theta: Tensor) -> None:
        """Give the module parameters of its own again, with the values of ``theta``."""
        for (_, p), value in zip(self._parameters, self.views(theta).values(), strict=True):
            p.grad = None
            p.data = value.clone()

    def first_nonfinite(self, vector: Tensor) -> str | None:
        """The name of the first parameter whose part of ``vector`` holds a nan or inf."""
        for name, part in self.views(vector).items():
            if not bool(torch.isfinite(part).all()):
                return name
        return None


def _layout(parameters: list[tuple[str, nn.Parameter]]) -> tuple[Slot, ...]:
    slots, offset = [], 0
    for name, p in parameters:
        slots.append(Slot(name, tuple(p.shape), offset, p.numel()))
        offset += p.numel()
    return tuple(slots)


def _refuse(module: nn.Module) -> None:
    """Raise ValueError for what would make f no function of the flat vector alone."""
    for name, layer in module.named_modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            raise ValueError(
                f"layer {name!r} is a BatchNorm: its output depends on the other samples and on hidden statistics, "
                "so the loss is no function of the parameters; use GroupNorm or LayerNorm"
            )
    for name, p in module.named_parameters():
        if not p.dtype.is_floating_point:
            raise ValueError(f"parameter {name!r} has dtype {p.dtype}; only real floating-point parameters can be trained")


def random_layers(module: nn.Module) -> list[str]:
    """Names of layers that draw random numbers in training mode."""
    return [name for name, layer in module.named_modules() if isinstance(layer, nn.modules.dropout._DropoutNd) and layer.p > 0]
