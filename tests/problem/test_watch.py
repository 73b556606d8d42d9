"""When the parts of a gradient are final: whole layers, from the end, each announced once, whatever the hooks do."""

from __future__ import annotations

import pytest
import torch
from problem_cases import CPU, case, network, point
from torch import Tensor, nn

from apts_mpi.problem.evaluator import PIECE
from apts_mpi.problem.flat import FlatModel
from apts_mpi.problem.watch import Watch, ranges


@pytest.mark.parametrize(("entries", "wanted"), [
    (1, [(24, 39), (0, 24)]),
    (16, [(24, 39), (0, 24)]),  # the large layer is not held up by the small one
    (30, [(0, 39)]),
    (10**9, [(0, 39)]),
])  # fmt: skip
def test_ranges_are_whole_layers_from_the_end(entries: int, wanted: list[tuple[int, int]]) -> None:
    slots = FlatModel(network(), torch.float64, CPU).slots
    assert [(part.start, part.stop) for part in ranges(slots, entries)] == wanted


@pytest.mark.parametrize("pieces", [1, 7])
def test_what_is_announced_is_final_and_what_comes_later_was_not(pieces: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PIECE, "cpu", -(-20 // pieces))
    here = case()
    here.objective.select(0, 0)
    subdomain, theta = here.objective.subdomains[1], point(here)
    grad, wanted = torch.empty_like(theta), torch.empty_like(theta)
    value = subdomain.owned(theta, wanted)
    told: list[tuple[int, int, Tensor]] = []
    assert subdomain.owned_in_parts(theta, grad, 8, lambda a, b: told.append((a, b, grad.clone()))) == value
    assert torch.equal(grad, wanted) and [(a, b) for a, b, _ in told] == [(24, 39), (0, 24)]
    assert all(torch.equal(then[a:b], wanted[a:b]) for a, b, then in told)
    assert not torch.equal(told[0][2][:24], wanted[:24])  # the first layer's was still to come
    told.clear()
    subdomain.owned(theta, grad)
    assert not told  # no hook stays behind


class Partly(nn.Module):
    """Its first layer is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.idle, self.used = nn.Linear(2, 2), nn.Linear(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


def test_a_layer_without_a_gradient_is_announced_at_the_end() -> None:
    flat = FlatModel(Partly(), torch.float32, CPU)
    told: list[tuple[int, int]] = []
    watch = Watch(flat, 1, lambda start, stop: told.append((start, stop)))
    flat.point(flat.initial(), torch.zeros(9))
    with watch:
        flat.module(torch.ones(3, 2)).sum().backward()
    assert told == [(6, 9)]
    watch.finish()
    assert told == [(6, 9), (0, 6)]


def test_a_pass_that_writes_leaves_nothing_of_what_stood_there() -> None:
    flat, into = FlatModel(Partly(), torch.float32, CPU), torch.full((9,), 7.0)
    told: list[tuple[int, int, Tensor]] = []
    watch = Watch(flat, 1, lambda start, stop: told.append((start, stop, into[start:stop].clone())), into)
    flat.point(flat.initial(), None)
    with watch:
        flat.module(torch.ones(3, 2)).sum().backward()
    watch.finish()
    assert [(start, stop) for start, stop, _ in told] == [(6, 9), (0, 6)]
    assert told[0][2].tolist() == [3.0, 3.0, 3.0] and told[1][2].tolist() == [0.0] * 6
    assert into.tolist() == [0.0] * 6 + [3.0] * 3 and all(p.grad is None for p in flat.module.parameters())


def test_a_gradient_that_comes_twice_is_an_error() -> None:
    """Otherwise a part would grow while it is being sent."""
    flat = FlatModel(nn.Linear(2, 1), torch.float32, CPU)
    flat.point(flat.initial(), torch.zeros(3))
    with Watch(flat, 1, lambda start, stop: None):
        flat.module(torch.ones(1, 2)).sum().backward()
        with pytest.raises(RuntimeError, match="the gradient of bias came twice in one backward pass; set baseline.overlap = false"):
            flat.module(torch.ones(1, 2)).sum().backward()
