"""Counted operations against a count by hand and against torch's own counter."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from apts_mpi.problem.flat import FlatModel
from apts_mpi.problem.flops import count, measured_peak
from apts_mpi.problem.losses import resolve_loss
from apts_mpi.problem.samples import Samples

CPU = torch.device("cpu")
LOSS = resolve_loss("cross_entropy")


def held(shape: tuple[int, ...], samples: int = 5) -> Samples:
    return Samples([range(samples)], torch.randn(samples, *shape), torch.arange(samples) % 3, dtype=torch.float32, device=CPU)


def counted(module: nn.Module, samples: Samples) -> tuple[float, float]:
    flat = FlatModel(module, torch.float32, CPU)
    return count(flat, LOSS, samples, flat.initial())


def test_a_small_network_by_hand() -> None:
    module = nn.Sequential(nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 3))
    forward = 2 * (7 * 5 + 5 * 3)
    backward = 2 * (7 * 5 + 5 * 3) + 2 * 5 * 3  # weights of both layers, inputs of the second alone
    assert counted(module, held((7,))) == (forward + backward, forward)
    assert counted(module, held((7,), samples=1)) == (forward + backward, forward)  # per sample


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.project, self.head = nn.Linear(8, 24), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.project(x).chunk(3, dim=-1)
        scores = torch.softmax(q @ k.transpose(-1, -2), dim=-1)
        return self.head((scores @ v).mean(dim=1))


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 3)), (2, 8, 8)),
        (Attention(), (6, 8)),
    ],
)
def test_as_torchs_counter_does(module: nn.Module, shape: tuple[int, ...]) -> None:
    samples = held(shape)
    found = counted(module, samples)
    inputs, targets = samples.take(slice(0, 2))
    with FlopCounterMode(display=False) as twin:
        losses = LOSS(module(inputs), targets)
        forward = twin.get_total_flops()
        torch.autograd.backward(losses, torch.ones_like(losses))
    assert found == (twin.get_total_flops() / 2, forward / 2)
    assert found[0] > 2 * found[1] > 0


def test_nothing_to_multiply() -> None:
    class Shift(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.b = nn.Parameter(torch.zeros(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.b

    assert counted(Shift(), held((3,))) == (0.0, 0.0)


def test_a_peak_is_a_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("apts_mpi.problem.flops.SECONDS", 0.02)
    monkeypatch.setattr("apts_mpi.problem.flops.SIZES", {"cpu": 64})
    for dtype in (torch.float32, torch.float64):
        peak = measured_peak(dtype, CPU)
        assert 1e6 < peak < 1e13 and math.isfinite(peak)
