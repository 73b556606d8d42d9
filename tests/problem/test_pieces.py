"""How many samples go through a model at once, and that nothing depends on it."""

from __future__ import annotations

import pytest
import torch
from network_cases import CPU, NAMES, case, flat_of
from torch import nn

from apts_mpi.partition import block
from apts_mpi.problem import pieces
from apts_mpi.problem.evaluator import Evaluator
from apts_mpi.problem.flat import FlatModel
from apts_mpi.problem.losses import resolve_loss
from apts_mpi.problem.objective import DataObjective, plan
from apts_mpi.problem.samples import Samples
from apts_mpi.problem.scoring import score


def test_what_a_small_network_keeps_by_hand() -> None:
    module = nn.Sequential(nn.Linear(10, 20), nn.Tanh(), nn.Linear(20, 3))
    flat = FlatModel(module, torch.float64, CPU)
    samples = Samples([range(4)], torch.ones(4, 10), torch.ones(4, 3), dtype=torch.float64, device=CPU)
    kept = pieces.kept_bytes(flat, resolve_loss("mse"), samples)
    assert kept == 8 * (10 + 20 + 3)  # inputs of both layers, and the difference that is squared


@pytest.mark.parametrize(("kept", "wanted"), [(0, 1024), (1, 1024), (2**18, 1024), (2**18 + 1, 512), (3 * 2**20, 64), (2**30, 1)])
def test_a_power_of_two_that_fits(kept: int, wanted: int) -> None:
    this = case("tanh")
    flat = flat_of(this)
    flat.kept = kept
    assert pieces.piece(flat, this.loss, this.samples, 1024) == wanted
    assert pieces.piece(flat, this.loss, this.samples, 13) <= 13


@pytest.mark.parametrize("name", ["mlp", "paper-mnist", "paper-cifar10"])
def test_the_papers_networks_go_in_pieces_of_1024(name: str) -> None:
    from apts_mpi.config import ModelConfig
    from apts_mpi.problem.models import build_model

    shape = (3, 32, 32) if name == "paper-cifar10" else (1, 28, 28)
    flat = FlatModel(build_model(ModelConfig(name=name), shape, 10, seed=0), torch.float32, CPU)
    held = Samples([range(2)], torch.zeros(2, *shape), torch.zeros(2, dtype=torch.long), dtype=torch.float32, device=CPU)
    assert Evaluator(flat, resolve_loss("cross_entropy"), held).piece == 1024


@pytest.mark.parametrize("name", NAMES)
def test_values_and_gradients_in_small_pieces_are_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    this, found = case(name, count=7), []
    for room in (2**40, 1):
        monkeypatch.setitem(pieces.BYTES, "cpu", room)
        flat = flat_of(this)
        evaluator = Evaluator(flat, this.loss, this.samples)
        assert evaluator.piece == (1024 if room > 1 else 1)
        objective = DataObjective(evaluator, plan(7, 2, batch=0, overlap=0.0, seed=0), block(2, 1, 0), 1)
        objective.select(0, 0)
        theta = flat.initial()
        grads = [torch.full_like(theta, float("nan")) for _ in range(2)]
        values = [subdomain.owned(theta, grad) for subdomain, grad in zip(objective.subdomains, grads, strict=True)]
        found.append((torch.tensor(values), torch.cat(grads), torch.tensor(score(flat, this.loss, this.samples, theta)[:1])))
    for whole, small in zip(*found, strict=True):
        assert torch.allclose(whole, small, rtol=1e-10, atol=1e-13)


def test_no_samples_no_pieces() -> None:
    this = case("tanh")
    flat, empty = flat_of(this), Samples([range(0)], this.inputs[:0], this.targets[:0], dtype=torch.float64, device=CPU)
    assert score(flat, this.loss, empty, flat.initial())[::2] == (0.0, 0.0) and flat.kept is None


def test_no_graph_stays_behind() -> None:
    """A kept one would keep its parameters' place on a stream: a CUDA graph could not be recorded on another."""
    this = case("tanh")
    flat = flat_of(this)
    pieces.kept_bytes(flat, this.loss, this.samples)
    for p in flat.module.parameters():
        behind = p.view_as(p).grad_fn.next_functions[0][0]  # type: ignore[union-attr]
        assert "seen" not in behind.metadata
        behind.metadata["seen"] = 1
        del behind
    pieces.kept_bytes(flat, this.loss, this.samples)
    assert all("seen" not in p.view_as(p).grad_fn.next_functions[0][0].metadata for p in flat.module.parameters())  # type: ignore[union-attr]
