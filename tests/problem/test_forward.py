"""Number formats, layout and compilation of the network: what they change and what they must not."""

from __future__ import annotations

import functools
import warnings

import pytest
import torch
from torch import nn

from apts_mpi.config import ModelConfig
from apts_mpi.problem import evaluator
from apts_mpi.problem.evaluator import Evaluator
from apts_mpi.problem.flat import FlatModel
from apts_mpi.problem.forward import Forward
from apts_mpi.problem.losses import resolve_loss
from apts_mpi.problem.objective import DataObjective, plan
from apts_mpi.problem.samples import Samples

CPU = torch.device("cpu")


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.GroupNorm(2, 8), nn.Flatten(), nn.Linear(8 * 36, 5))


def gradient(config: ModelConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs, and the gradient of their squares."""
    flat = FlatModel(network(), torch.float32, CPU, config)
    theta = flat.initial()
    grad = torch.zeros_like(theta)
    flat.point(theta, grad)
    outputs = flat.forward(torch.randn(16, 3, 6, 6, generator=torch.Generator().manual_seed(5)))
    outputs.square().sum().backward()
    return outputs.detach(), grad


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def test_layout_of_images_changes_rounding_alone() -> None:
    for found, wanted in zip(gradient(ModelConfig(channels_last=True)), gradient(ModelConfig()), strict=True):
        assert found.dtype == torch.float32 and apart(found, wanted) < 1e-5


def test_bfloat16_is_seen_in_the_outputs_and_not_in_the_formats() -> None:
    for found, wanted in zip(gradient(ModelConfig(precision="bf16")), gradient(ModelConfig()), strict=True):
        assert found.dtype == torch.float32 and 1e-4 < apart(found, wanted) < 0.05


def test_a_compiled_network_computes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Captured by torch.compile, forward and backward; without the C++ that it would write, which takes a minute."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "the network is not compiled")
        found = gradient(ModelConfig(compile=True))
    assert all(apart(a, b) < 1e-5 for a, b in zip(found, gradient(ModelConfig()), strict=True))


def test_a_network_that_cannot_be_compiled_is_evaluated_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(inputs: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no compiler was found\nmore of it")

    monkeypatch.setattr(torch, "compile", lambda module: fails)
    forward, inputs = Forward(network(), torch.float32, ModelConfig(compile=True)), torch.ones(2, 3, 6, 6)
    with pytest.warns(UserWarning, match="model.compile = true.: no compiler was found$"):
        found = forward(inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(found, forward(inputs))


def test_tf32_is_for_the_products_of_the_network_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The switch of torch is on in both passes of the network and off after them, where the solver forms inner products."""
    seen = list[bool]()

    class Watched(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, inputs: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            seen.append(torch.backends.cuda.matmul.allow_tf32)
            return inputs.clone()

        @staticmethod
        def backward(ctx: object, grad: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            seen.append(torch.backends.cuda.matmul.allow_tf32)
            return grad

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = Watched.apply(self.layer(inputs))
            return out

    flat = FlatModel(Network(), torch.float32, CPU, ModelConfig(precision="tf32"))
    held = Samples([range(4)], torch.ones(4, 3), torch.arange(4) % 2, dtype=torch.float32, device=CPU)
    objective = DataObjective(Evaluator(flat, resolve_loss("cross_entropy"), held), plan(4, 1, batch=0, overlap=0.0, seed=0), range(1), 1)
    monkeypatch.setitem(evaluator.PIECE, "cpu", 2)  # the first piece is written into the gradient, the second added to it
    objective.select(0, 0)
    theta = flat.initial()
    objective.subdomains[0].owned(theta, torch.zeros_like(theta))
    seen.clear()  # how much a sample keeps was measured first
    objective.subdomains[0].owned(theta, torch.zeros_like(theta))
    assert seen == 4 * [True] and not torch.backends.cuda.matmul.allow_tf32


@pytest.mark.parametrize("precision", ["bf16", "tf32"])
def test_less_than_float32_is_no_float64(precision: str) -> None:
    with pytest.raises(ValueError, match=f"precision = {precision} needs model.dtype = float32"):
        ModelConfig(precision=precision, dtype="float64")  # type: ignore[arg-type]
