"""How the network is evaluated: the number format of its products, the layout of images, compiled or not."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from apts_mpi.config import ModelConfig


@contextmanager
def _tf32() -> Iterator[None]:
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


class Forward:
    """The outputs of ``module`` in ``dtype``, as ``model.precision``, ``model.compile`` and ``model.channels_last`` have it.

    bf16: autocast, that is products in bfloat16 of 8 bits, parameters, sums over samples and gradients in ``dtype``. tf32: in the
    network's products alone, so whoever makes a backward pass does so within ``products``. A network that torch.compile cannot do is
    evaluated as it is, after a warning.
    """

    def __init__(self, module: nn.Module, dtype: torch.dtype, config: ModelConfig) -> None:
        self._module, self._dtype, self._config = module, dtype, config
        self.passes = 0  # so far; another thread may ask whether this one gets on
        self._compiled: Callable[[Tensor], Tensor] | None = torch.compile(module) if config.compile else None

    def __call__(self, inputs: Tensor) -> Tensor:
        """``inputs`` (samples, ...) to outputs (samples, ...), on the device of both."""
        self.passes += 1
        if self._config.channels_last and inputs.dim() == 4:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        with self._numbers(inputs.device.type):
            outputs = self._outputs(inputs)
        return outputs.to(self._dtype)

    def products(self) -> AbstractContextManager[object]:
        """Around a backward pass, as here around the forward pass: TF32 on a GPU, if it is wanted, and never for the solver's products."""
        return _tf32() if self._config.precision == "tf32" else nullcontext()

    def _numbers(self, device: str) -> AbstractContextManager[object]:
        return torch.autocast(device, torch.bfloat16) if self._config.precision == "bf16" else self.products()

    def _outputs(self, inputs: Tensor) -> Tensor:
        if self._compiled is not None:
            try:
                return self._compiled(inputs)
            except RuntimeError as error:
                told = str(error).strip().splitlines() or [type(error).__name__]
                warnings.warn(f"the network is not compiled (model.compile = true): {told[0]}", stacklevel=2)
                self._compiled = None
        outputs: Tensor = self._module(inputs)
        return outputs
