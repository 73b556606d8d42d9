"""Losses and networks by name, by path and as objects."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from apts_mpi.config import ModelConfig
from apts_mpi.problem.losses import correct, cross_entropy, is_classification, mse, resolve_loss
from apts_mpi.problem.models import build_model

rng = np.random.default_rng(2)
LOGITS, LABELS = torch.from_numpy(rng.standard_normal((6, 4))), torch.tensor([0, 3, 1, 1, 2, 0])
DIGITS = ((1, 8, 8), 10)


def by_hand(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return np.array([np.log(np.exp(z).sum()) - z[c] for z, c in zip(logits, labels, strict=True)])


def test_cross_entropy_per_sample() -> None:
    assert np.allclose(cross_entropy(LOGITS, LABELS).numpy(), by_hand(LOGITS.numpy(), LABELS.numpy()), rtol=1e-13)


def test_cross_entropy_of_sequences_is_the_mean_over_positions() -> None:
    found = cross_entropy(LOGITS.view(2, 3, 4), LABELS.view(2, 3))
    assert np.allclose(found.numpy(), by_hand(LOGITS.numpy(), LABELS.numpy()).reshape(2, 3).mean(1), rtol=1e-13)


@pytest.mark.parametrize("shape", [(6, 4), (6, 2, 2)])
def test_mse_is_the_mean_over_a_samples_outputs(shape: tuple[int, ...]) -> None:
    targets = torch.from_numpy(rng.standard_normal((6, 4))).view(shape)
    wanted = ((LOGITS.numpy() - targets.numpy().reshape(6, 4)) ** 2).mean(1)
    assert np.allclose(mse(LOGITS.view(shape), targets).numpy(), wanted, rtol=1e-13)


def test_mse_of_a_column_and_flat_targets_pairs_sample_with_sample() -> None:
    """Broadcasting (6, 1) against (6,) would compare every output with every target."""
    assert mse(torch.arange(6.0).view(6, 1), torch.arange(6.0)).tolist() == [0] * 6


@pytest.mark.parametrize(("loss", "wanted"), [
    (nn.CrossEntropyLoss(), "cross_entropy"), (nn.CrossEntropyLoss(reduction="sum"), "cross_entropy"),
    ("torch.nn.functional:cross_entropy", ""),
])  # fmt: skip
def test_torch_losses(loss: nn.Module | str, wanted: str) -> None:
    reduction = getattr(loss, "reduction", "")
    found = resolve_loss(loss)(LOGITS, LABELS)
    if wanted:
        assert torch.allclose(found, cross_entropy(LOGITS, LABELS), rtol=1e-13)
    else:  # torch's function gives one number: taken as the mean
        assert torch.allclose(found, cross_entropy(LOGITS, LABELS).mean().expand(6), rtol=1e-13)
    assert getattr(loss, "reduction", "") == reduction  # the caller's object stays as it was


def test_torch_loss_with_many_outputs_is_averaged_over_them() -> None:
    found = resolve_loss(nn.MSELoss())(LOGITS, torch.zeros(6, 4, dtype=torch.float64))
    assert torch.allclose(found, LOGITS.square().mean(1), rtol=1e-13)


def test_a_callable_that_returns_one_number_is_the_mean() -> None:
    outputs = LOGITS.clone().requires_grad_()
    losses = resolve_loss(lambda outputs, targets: (outputs**2).mean())(outputs, LABELS)
    assert losses.shape == (6,) and torch.allclose(losses, LOGITS.square().mean().expand(6), rtol=1e-13)
    torch.autograd.backward(losses, torch.full_like(losses, 1 / 6))
    assert torch.allclose(outputs.grad, 2 * LOGITS / 24, rtol=1e-13)


def test_a_callable_per_sample_is_taken_as_it_is() -> None:
    assert torch.equal(resolve_loss(lambda outputs, targets: outputs[:, 0])(LOGITS, LABELS), LOGITS[:, 0])


def test_unknown_loss_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"model.loss must be one of cross_entropy, mse or package.module:attribute, got 'hinge'"):
        resolve_loss("hinge")


@pytest.mark.parametrize("path", ["nowhere_at_all:loss", "torch.nn.functional:no_such_loss"])
def test_loss_that_cannot_be_imported(path: str) -> None:
    with pytest.raises(ValueError, match=f"model.loss = '{path}' cannot be imported"):
        resolve_loss(path)


def test_classes_and_what_cannot_be_called() -> None:
    assert torch.equal(resolve_loss("torch.nn:CrossEntropyLoss")(LOGITS, LABELS), resolve_loss(nn.CrossEntropyLoss())(LOGITS, LABELS))
    with pytest.raises(ValueError, match="is a class that needs arguments, pass an instance"):
        resolve_loss("functools:partial")
    with pytest.raises(ValueError, match="must be a name or a function"):
        resolve_loss("math:pi")


def test_a_module_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the installed command finds things: without the working directory on the path."""
    (tmp_path / "beside_me.py").write_text("def loss(outputs, targets):\n    return outputs[:, 0]\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.delitem(sys.modules, "beside_me", raising=False)
    assert torch.equal(resolve_loss("beside_me:loss")(LOGITS, LABELS), LOGITS[:, 0])


def test_mse_of_labels_is_refused() -> None:
    with pytest.raises(ValueError, match=r"outputs have shape \(6, 4\), targets \(6,\); for class labels use cross_entropy"):
        mse(LOGITS, LABELS)


def test_a_factory_that_cannot_be_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "odd_factory.py").write_text("def make(shape):\n    return None\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"model.name = 'odd_factory:make' failed as factory\(\(1, 8, 8\), 10\): .*2 were given"):
        build_model(ModelConfig(name="odd_factory:make"), *DIGITS, seed=0)


def test_correct_counts_samples_and_shares_of_sequences() -> None:
    outputs = torch.eye(4)[[0, 1, 2, 3, 0, 1]]
    assert float(correct(outputs, torch.tensor([0, 1, 2, 0, 0, 0]))) == 4
    assert float(correct(outputs.view(2, 3, 4), torch.tensor([[0, 1, 2], [0, 0, 0]]))) == pytest.approx(1 + 1 / 3)


def test_integers_are_labels() -> None:
    kinds = [torch.int64, torch.uint8, torch.int32, torch.float32, torch.float64, torch.bool]
    assert [is_classification(torch.zeros(2, dtype=kind)) for kind in kinds] == [True] * 3 + [False] * 3


@pytest.mark.parametrize(("name", "shape", "n_params", "head"), [
    ("paper-mnist", (1, 28, 28), 535_818, nn.Linear), ("paper-mnist-sigmoid", (1, 28, 28), 535_818, nn.Sigmoid),
    ("paper-cifar10", (3, 32, 32), 1_841_162, nn.Linear),
])  # fmt: skip
def test_the_papers_networks(name: str, shape: tuple[int, ...], n_params: int, head: type[nn.Module]) -> None:
    model = build_model(ModelConfig(name=name), shape, 10, seed=0)
    assert sum(p.numel() for p in model.parameters()) == n_params
    assert isinstance(list(model.modules())[-1], head)
    assert model(torch.zeros(2, *shape)).shape == (2, 10)


@pytest.mark.parametrize("widths", [(), (7,), (5, 4, 3)])
def test_mlp_of_any_widths(widths: tuple[int, ...]) -> None:
    model = build_model(ModelConfig(widths=widths), *DIGITS, seed=0)
    sizes = [64, *widths, 10]
    assert [(layer.in_features, layer.out_features) for layer in model if isinstance(layer, nn.Linear)] == list(
        zip(sizes, sizes[1:], strict=False)
    )
    assert sum(isinstance(layer, nn.ReLU) for layer in model) == len(widths)


def test_cnn() -> None:
    assert build_model(ModelConfig(name="cnn"), (3, 9, 12), 5, seed=0)(torch.zeros(2, 3, 9, 12)).shape == (2, 5)
    with pytest.raises(ValueError, match=r"model.name = 'cnn' needs samples of shape \(channels, height, width\), got \(64,\)"):
        build_model(ModelConfig(name="cnn"), (64,), 10, seed=0)


def test_same_seed_same_network_and_the_callers_random_numbers_stay() -> None:
    state = torch.random.get_rng_state()
    a, b, c = (nn.utils.parameters_to_vector(build_model(ModelConfig(), *DIGITS, seed=seed).parameters()) for seed in (3, 3, 4))
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_factory_by_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_networks.py").write_text(
        "from torch import nn\n"
        "def small(shape, outputs):\n    return nn.Sequential(nn.Flatten(), nn.Linear(shape[1] * shape[2], outputs))\n"
        "def wrong(shape, outputs):\n    return 'no network'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_networks", raising=False)
    model = build_model(ModelConfig(name="own_networks:small"), *DIGITS, seed=0)
    assert sum(p.numel() for p in model.parameters()) == 650
    with pytest.raises(ValueError, match="model.name = 'own_networks:wrong' must return a torch.nn.Module, got str"):
        build_model(ModelConfig(name="own_networks:wrong"), *DIGITS, seed=0)


def test_unknown_model_names_the_known_ones() -> None:
    known = "mlp, tanh, poisson, cnn, resnet, transformer, paper-mnist, paper-mnist-sigmoid, paper-cifar10"
    with pytest.raises(ValueError, match=f"model.name must be one of {known} or package.module:attribute, got 'resnet50'"):
        build_model(ModelConfig(name="resnet50"), *DIGITS, seed=0)
