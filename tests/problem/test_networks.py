"""The residual network, the transformer and the smooth networks: functions of one sample and of the flat vector alone."""

from __future__ import annotations

import math

import pytest
import torch
from network_cases import CHARACTERS, NAMES, SHAPES, Case, case, flat_of
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from apts_mpi.config import ModelConfig
from apts_mpi.problem.flops import count
from apts_mpi.problem.losses import correct
from apts_mpi.problem.models import build_model
from apts_mpi.problem.scoring import score
from apts_mpi.problem.transformer import HEADS, LAYERS, WIDTH


def outputs(this: Case, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = this.module(inputs)
    return found


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_output_depends_on_its_own_sample_alone(name: str, dtype: torch.dtype) -> None:
    this, other = case(name, dtype=dtype), case(name, dtype=dtype, seed=7)
    together = outputs(this, this.inputs)
    assert together.dtype == dtype and together.std() > 0
    among_others = outputs(this, torch.cat([this.inputs[:1], other.inputs]))[:1]
    tolerance = 1e-12 if dtype is torch.float64 else 1e-5
    for part in (outputs(this, this.inputs[:1]), among_others):
        assert torch.allclose(part, together[:1], rtol=tolerance, atol=tolerance)
    assert torch.equal(outputs(this, this.inputs), together)  # and on nothing random


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_of_the_flat_view_is_that_of_autograd(name: str) -> None:
    this = case(name)
    flat = flat_of(this)
    theta = flat.initial() + 0.01 * torch.sin(torch.arange(flat.n_params, dtype=torch.float64))
    grad = torch.full_like(theta, math.nan)
    flat.point(theta, grad)
    flat.write_gradient_(grad, this.loss(flat.module(this.inputs), this.targets), 1 / 6)
    leaf = theta.clone().requires_grad_()
    parts = {slot.name: leaf[slot.offset : slot.offset + slot.size].view(slot.shape) for slot in flat.slots}
    twin = this.loss(functional_call(this.module, parts, this.inputs), this.targets).mean()
    assert torch.allclose(grad, torch.autograd.grad(twin, leaf)[0], rtol=1e-10, atol=1e-14)
    assert {slot.size for slot in flat.slots} and bool((grad != 0).any())


@pytest.mark.parametrize("name", NAMES)
def test_operations_are_counted_as_by_torch(name: str) -> None:
    this = case(name)
    flat = flat_of(this)
    found = count(flat, this.loss, this.samples, flat.initial())
    with FlopCounterMode(display=False) as twin:
        losses = this.loss(this.module(this.inputs[:2]), this.targets[:2])
        forward = twin.get_total_flops()
        torch.autograd.backward(losses, torch.ones_like(losses))
    assert found == (twin.get_total_flops() / 2, forward / 2)
    assert found[0] > 2 * found[1] > 0


def test_operations_of_the_transformer_by_hand() -> None:
    this, length = case("transformer"), SHAPES["transformer"][0]
    flat = flat_of(this)
    products = LAYERS * (12 * WIDTH**2 + 2 * length * WIDTH) + WIDTH * CHARACTERS  # of a position
    assert count(flat, this.loss, this.samples, flat.initial())[1] == 2 * length * products


def test_resnet_has_the_size_it_should_and_no_state() -> None:
    model = build_model(ModelConfig(name="resnet"), (3, 32, 32), 10, seed=0)
    assert sum(p.numel() for p in model.parameters()) == 175_066
    assert not list(model.buffers())
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    with pytest.raises(ValueError, match=r"model.name = 'resnet' needs samples of shape \(channels, height, width\), got \(64,\)"):
        build_model(ModelConfig(name="resnet"), (64,), 10, seed=0)


def test_a_block_of_the_resnet_by_hand() -> None:
    block = list(case("resnet").module)[3]
    assert isinstance(block, nn.Module)
    names = dict(block.named_parameters())
    x = torch.randn(2, 16, 6, 5, dtype=torch.float64)

    def normed(values: Tensor, name: str) -> Tensor:
        parts = values.view(2, -1, 8 * values[0, 0].numel())
        parts = (parts - parts.mean(2, keepdim=True)) / (parts.var(2, keepdim=True, unbiased=False) + 1e-5).sqrt()
        scaled = parts.view_as(values) * names[f"{name}.weight"][:, None, None] + names[f"{name}.bias"][:, None, None]
        return scaled.clamp(min=0)

    ready = normed(x, "norm1")
    change = functional.conv2d(ready, names["conv1.weight"], stride=2, padding=1)
    change = functional.conv2d(normed(change, "norm2"), names["conv2.weight"], padding=1)
    assert torch.allclose(block(x), change + functional.conv2d(ready, names["short.weight"], stride=2), rtol=1e-12, atol=1e-12)


def test_a_later_character_changes_no_earlier_score() -> None:
    this = case("transformer")
    before = outputs(this, this.inputs)
    for position in range(this.inputs.shape[1]):
        changed = this.inputs.clone()
        changed[:, position] = (changed[:, position] + 1) % CHARACTERS
        after = outputs(this, changed)
        assert torch.equal(after[:, :position], before[:, :position])
        assert bool((after[:, position] != before[:, position]).any(1).all())
    assert not torch.allclose(after[:, -1], before[:, -1])
    assert torch.allclose(outputs(this, this.inputs[:, :4]), before[:, :4], rtol=1e-12, atol=1e-13)  # a prefix is a window too


def test_attention_as_torchs_own() -> None:
    this = case("transformer")
    attention = this.module.blocks[0].attention  # type: ignore[union-attr, index]
    x = torch.randn(3, 9, WIDTH, dtype=torch.float64)
    q, k, v = (part.view(3, 9, HEADS, -1).transpose(1, 2) for part in attention.project(x).split(WIDTH, 2))
    mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    assert torch.allclose(attention(x), attention.out(mixed.transpose(1, 2).reshape(3, 9, WIDTH)), rtol=1e-12, atol=1e-14)


def test_transformer_has_a_million_parameters_and_starts_knowing_nothing() -> None:
    model = build_model(ModelConfig(name="transformer"), (64,), 65, seed=0)
    assert sum(p.numel() for p in model.parameters()) == 1_031_105
    text = torch.randint(65, (4, 65), generator=torch.Generator().manual_seed(0))
    found = functional.cross_entropy(model(text[:, :-1]).flatten(0, 1), text[:, 1:].flatten())
    assert float(found.detach()) == pytest.approx(math.log(65), rel=0.05)
    with pytest.raises(ValueError, match=r"model.name = 'transformer' needs windows of characters, shape \(length,\), got \(1, 8, 8\)"):
        build_model(ModelConfig(name="transformer"), (1, 8, 8), 10, seed=0)


def test_loss_and_accuracy_of_text_are_means_over_characters() -> None:
    this = case("transformer")
    flat = flat_of(this)
    total, hits, windows = score(flat, this.loss, this.samples, flat.initial())
    found = outputs(this, this.inputs).flatten(0, 1)
    assert windows == 6  # a sample is a window
    assert total / windows == pytest.approx(float(functional.cross_entropy(found, this.targets.flatten())), rel=1e-12)
    assert hits / windows == pytest.approx(float((found.argmax(1) == this.targets.flatten()).double().mean()), rel=1e-12)
    assert float(correct(outputs(this, this.inputs), this.targets)) == hits
