"""The metric against its definition by eigenvalues of a dense matrix."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

sys.path.append(str(Path(__file__).parents[1] / "reference"))
from dense_sr1 import recursion

from apts_mpi.solver.lsr1 import CUT
from apts_mpi.solver.metric import BELOW, Metric

N = 12


def hessian(seed: int, *, convex: bool) -> Tensor:
    a = torch.randn(N, N, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return a @ a.T if convex else a + a.T


def pairs_of(matrix: Tensor, count: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    steps = torch.randn(count, len(matrix), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return [(s, matrix @ s) for s in steps]


def fed(pairs: list[tuple[Tensor, Tensor]], memory: int, dtype: torch.dtype = torch.float64, cut: float = 1e-12) -> Metric:
    metric = Metric(memory, torch.zeros(len(pairs[0][0]), dtype=dtype), cut)
    for k, (s, y) in enumerate(pairs):
        base = torch.full_like(s, float(k)).to(dtype)
        metric.observe(s.to(dtype), base, base + y.to(dtype))
    return metric


def matrix(metric: Metric, n: int = N, dtype: torch.dtype = torch.float64) -> np.ndarray:
    """P, column by column."""
    return np.stack([metric.apply(column).double().numpy().copy() for column in torch.eye(n, dtype=dtype)])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 2e-4)])
@pytest.mark.parametrize("convex", [True, False])
@pytest.mark.parametrize("count", [1, 3, 4, 9])
@pytest.mark.parametrize("seed", range(4))
def test_is_the_function_of_the_dense_matrix(seed: int, count: int, convex: bool, dtype: torch.dtype, tolerance: float) -> None:
    pairs = pairs_of(hessian(seed, convex=convex), count, seed + 100)
    kept = pairs[-4:]
    known = [float(s @ y / (s @ s)) for s, y in kept if s @ y > 0]
    wanted = np.eye(N)
    if known:
        gamma = BELOW * min(known)
        b, _ = recursion(np.stack([s.numpy() for s, _ in kept]), np.stack([y.numpy() for _, y in kept]), gamma)
        size, vectors = np.linalg.eigh(b)
        wanted = vectors @ np.diag(np.sqrt(np.minimum(1, gamma / abs(size)))) @ vectors.T
    found = matrix(fed(pairs, 4, dtype), dtype=dtype)
    assert np.abs(found - wanted).max() <= tolerance
    assert np.linalg.norm(found, 2) <= 1 + tolerance  # nothing is amplified


def test_does_nothing_without_positive_curvature() -> None:
    metric = fed(pairs_of(-torch.eye(N, dtype=torch.float64), 3, 0), 4)
    vector = torch.ones(N, dtype=torch.float64)
    assert metric.apply(vector) is vector


def test_leaves_a_sphere_alone_and_damps_the_steeper_direction_by_the_root() -> None:
    """Curvature 1 in one direction seen, 100 in another: (0.9 / 100)^(1/2) of it is left, and all else stays."""
    one, two = torch.eye(N, dtype=torch.float64)[:2]
    metric = fed([(one, one), (two, 100 * two)], 4)
    wanted = np.eye(N)
    wanted[0, 0], wanted[1, 1] = np.sqrt(0.9), np.sqrt(0.009)
    assert np.abs(matrix(metric) - wanted).max() <= 1e-12


def test_a_pair_whose_curvature_is_rounding_does_not_set_gamma() -> None:
    one, two, three = torch.eye(N, dtype=torch.float64)[:3]
    known = [(one, one), (two, 10 * two)]
    nearly_none = (three, 1e-15 * three + one)  # s'y = 1e-15 ||s|| ||y||
    assert np.linalg.eigvalsh(matrix(fed([*known, nearly_none], 4))).min() > 0.1  # 3e-8 if that were the least curvature


def test_no_direction_is_frozen() -> None:
    one, two = torch.eye(N, dtype=torch.float64)[:2]
    found = matrix(fed([(one, 1e-8 * one), (two, two)], 4))
    assert found[1, 1] == pytest.approx(1e-3) and found[0, 0] == pytest.approx(np.sqrt(0.9), abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(4))
def test_with_the_cut_that_is_used(seed: int, dtype: torch.dtype) -> None:
    """Directions that are cut stay as they are, the others are those of the function of the dense matrix within the span that is left."""
    kept = pairs_of(hessian(seed, convex=True), 4, seed + 50)
    metric = fed(kept, 4, dtype, CUT)
    found = matrix(metric, dtype=dtype)
    assert np.linalg.norm(found, 2) <= 1 + 1e-5 and np.abs(found - found.T).max() <= 1e-5
    rank = metric.rank
    assert 1 <= rank <= 4 and (np.linalg.eigvalsh(found) < 1 - 1e-6).sum() <= rank


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_pair_that_is_not_finite_is_left_out(bad: float) -> None:
    pairs = pairs_of(hessian(3, convex=True), 3, 7)
    spoiled = (pairs[0][0], torch.full_like(pairs[0][1], bad))
    assert np.array_equal(matrix(fed([*pairs, spoiled], 8)), matrix(fed(pairs, 8)))
    assert np.array_equal(matrix(fed([*pairs, spoiled], 3)), matrix(fed(pairs, 3)))  # in a full memory too


def test_more_pairs_than_dimensions() -> None:
    a = torch.diag(torch.tensor([1.0, 4.0], dtype=torch.float64))
    found = matrix(fed(pairs_of(a, 6, 1), 6), n=2)
    assert np.isfinite(found).all() and np.linalg.norm(found, 2) <= 1 + 1e-12


def test_slots_that_a_memory_does_not_have_are_refused() -> None:
    metric = fed(pairs_of(hessian(0, convex=True), 4, 0), 4)
    for slots in ([0, 1, 2, 5], [0, 0], []):
        with pytest.raises(ValueError, match="the slots of a memory of 4 pairs cannot be"):
            metric.restore_({**metric.state(), "slots": torch.tensor(slots, dtype=torch.float64)})


def test_begins_anew_from_the_state_of_another_memory_and_from_none() -> None:
    pairs = pairs_of(hessian(0, convex=True), 4, 0)
    for state in ({}, fed(pairs, 3).state()):
        metric = fed(pairs, 4)
        metric.restore_(state)
        assert np.array_equal(matrix(metric), np.eye(N))
        for s, y in pairs:
            metric.observe(s, torch.zeros_like(y), y)
        assert np.abs(matrix(metric) - matrix(fed(pairs, 4))).max() <= 1e-12
