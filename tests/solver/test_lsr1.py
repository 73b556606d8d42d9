"""lsr1.py against the dense twin, its passes and transfers counted, and its manners at the edges."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference.dense_sr1 import DenseLSR1
from reference.dense_trust_region import kkt_residual, solve_dense, value
from solver_cases import cases
from torch.utils._python_dispatch import TorchDispatchMode

from apts_mpi.native import kernels
from apts_mpi.solver.lsr1 import LSR1
from apts_mpi.solver.model import FirstOrder, Model

CPU = torch.device("cpu")
FINE = 1e-10  # a cut that keeps everything that float64 can see


def filled(n: int, memory: int, pairs: int, *, dtype: torch.dtype = torch.float64, cut: float = FINE) -> tuple[LSR1, torch.Tensor]:
    """A model after ``pairs`` accepted steps on an indefinite quadratic, and the current gradient."""
    torch.manual_seed(0)
    model, diagonal = LSR1(n, memory, dtype, CPU, cut=cut), torch.linspace(-1, 3, n, dtype=dtype)
    grad = torch.randn(n, dtype=dtype)
    model.begin(grad)
    for _ in range(pairs):
        step = 0.1 * torch.randn(n, dtype=dtype)
        grad_new = grad + diagonal * step
        assert model.observe_(step, grad, grad_new).taken
        model.accept()
        grad = grad_new
    return model, grad


@dataclass
class Run:
    """A random walk of gradients; some steps are accepted, some pairs are useless."""

    n: int
    memory: int
    seed: int
    kinds: list[str] = field(default_factory=list)


RUNS = st.builds(
    Run, st.integers(1, 10), st.integers(0, 6), st.integers(0, 2**32 - 1),
    st.lists(st.sampled_from(("good", "good", "foreign", "nan", "inf", "no_change", "same_again")), min_size=1, max_size=10),
)  # fmt: skip


@pytest.mark.fault(8)
@pytest.mark.fault(9)
@pytest.mark.timeout(3600)
@given(RUNS)
@cases(0.08)
def test_walk_equals_the_dense_twin(run: Run) -> None:
    """Same pairs taken, same gamma, and every step optimal for the dense B."""
    rng = np.random.default_rng(run.seed)
    a = rng.standard_normal((run.n, run.n))
    hessian = a + a.T + np.eye(run.n)
    model, twin = LSR1(run.n, run.memory, torch.float64, CPU, cut=FINE), DenseLSR1(run.n, run.memory, 1.0)
    g = rng.standard_normal(run.n)
    assert model.begin(torch.from_numpy(g)) == pytest.approx(np.linalg.norm(g))
    for kind in run.kinds:
        radius = 10.0 ** rng.uniform(-2, 2)
        step = model.propose_(torch.from_numpy(g), radius)
        s = step.vector.numpy().copy()
        if not well_posed(twin):
            return
        compare(twin.hessian(), g, s, radius, step.predicted)
        if kind == "foreign":
            s = rng.standard_normal(run.n)
        elif kind == "same_again" and twin.pairs:
            s = twin.pairs[-1][0].copy()
        y = hessian @ s + 0.3 * rng.standard_normal(run.n)
        g_new = {"nan": np.full(run.n, np.nan), "inf": np.full(run.n, np.inf), "no_change": g}.get(kind, g + y)
        margin = admission_margin(twin, s, g_new - g)
        with np.errstate(all="ignore"):
            seen = model.observe_(torch.from_numpy(s), torch.from_numpy(g), torch.from_numpy(g_new))
            if seen.taken != twin.offer(s, g_new - g):
                assert margin < 1e-6  # on the edge of the admission test rounding decides
                return
        assert seen.finite == bool(np.isfinite(g_new).all())
        assert model.gamma == pytest.approx(twin.gamma, rel=1e-6)
        assert model.count == len(twin.pairs)
        if seen.finite and rng.random() < 0.5:
            model.accept()
            g = g_new


def admission_margin(twin: DenseLSR1, s: np.ndarray, y: np.ndarray) -> float:
    """|s'(y - Bs)| relative to its terms; 0 if not finite."""
    with np.errstate(all="ignore"):
        b = twin.hessian()
        terms = np.linalg.norm(y) + (np.linalg.norm(b) + twin.gamma) * np.linalg.norm(s)
        margin = abs(s @ (y - b @ s)) / (np.linalg.norm(s) * terms)
    return float(margin) if np.isfinite(margin) else 0.0


def well_posed(twin: DenseLSR1) -> bool:
    """Can the pairs be told apart, and has B not been blown up by a small denominator?"""
    steps, changes = twin.rows()
    psi = changes - twin.gamma * steps
    if len(psi) == 0:
        return True
    scaled = psi / (np.linalg.norm(changes, axis=1) + twin.gamma * np.linalg.norm(steps, axis=1))[:, None]
    singular = np.linalg.svd(scaled, compute_uv=False)
    return bool(singular[-1] > 1e-2 * singular[0] and len(psi) <= psi.shape[1] and np.abs(twin.hessian()).max() < 1e4)


def compare(b: np.ndarray, g: np.ndarray, s: np.ndarray, radius: float, predicted: float) -> None:
    size = radius * (np.linalg.norm(g) + radius * np.abs(b).max())
    assert np.linalg.norm(s) <= radius * (1 + 1e-6)
    assert predicted == pytest.approx(-value(b, g, s), abs=1e-6 * size)
    assert value(b, g, s) <= value(b, g, solve_dense(b, g, radius)) + 1e-6 * size


@pytest.mark.parametrize("memory", [1, 3])
def test_full_ring_still_solves_the_dense_problem(memory: int) -> None:
    model, twin = LSR1(8, memory, torch.float64, CPU, cut=FINE), DenseLSR1(8, memory, 1.0)
    rng = np.random.default_rng(1)
    a = rng.standard_normal((8, 8))
    g = rng.standard_normal(8)
    model.begin(torch.from_numpy(g))
    for _ in range(3 * memory + 2):
        step = model.propose_(torch.from_numpy(g), 0.7)
        s = step.vector.numpy().copy()
        sigma = float(-(s @ (twin.hessian() @ s + g)) / (s @ s)) if step.hits_boundary else 0.0
        assert kkt_residual(twin.hessian(), g, s, sigma, 0.7) <= 1e-6
        g_new = g + (a + a.T) @ s
        assert model.observe_(step.vector, torch.from_numpy(g), torch.from_numpy(g_new)).taken == twin.offer(s, g_new - g)
        model.accept()
        g = g_new
    assert model.count == memory


class Reads(TorchDispatchMode):
    """Counts the elements of the memory that matrix products read."""

    def __init__(self, memory: torch.Tensor) -> None:
        super().__init__()
        self._storage, self.elements = memory.untyped_storage().data_ptr(), 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.mv, torch.ops.aten.addmv, torch.ops.aten.addmv_):
            for x in args:
                if isinstance(x, torch.Tensor) and x.dim() == 2 and x.untyped_storage().data_ptr() == self._storage:
                    self.elements += x.numel()
        return func(*args, **(kwargs or {}))


@contextmanager
def transfers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Names of the calls that would wait for a device."""
    seen: list[str] = []
    with monkeypatch.context() as patch:
        for name in ("cpu", "item", "tolist", "__float__", "__bool__", "__int__", "numpy"):
            real = getattr(torch.Tensor, name)
            patch.setattr(torch.Tensor, name, lambda self, *a, _name=name, _real=real, **k: (seen.append(_name), _real(self, *a, **k))[1])
        yield seen


@pytest.mark.parametrize("pairs", [0, 2, 4, 9])
def test_two_passes_and_one_transfer_per_iteration(pairs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "compiled", lambda like: False)  # torch's reads can be counted
    n, memory = 50_000, 4
    model, grad = filled(n, memory, pairs)
    active = 2 * min(pairs, memory)
    grad_new = grad + 0.1 * torch.randn_like(grad)
    with Reads(model.pairs.rows) as reads, transfers(monkeypatch) as seen:
        step = model.propose_(grad, 0.5)
    assert (reads.elements, seen) == (active * n, [])
    with Reads(model.pairs.rows) as reads, transfers(monkeypatch) as seen:
        assert model.observe_(step.vector, grad, grad_new).taken
    spare = 2 if pairs > memory else 0  # once the ring has turned, the spare slot lies among the others
    assert reads.elements <= (active + spare) * n and seen == ["cpu", "numpy"]
    with Reads(model.pairs.rows) as reads, transfers(monkeypatch) as seen:
        model.accept()
    assert (reads.elements, seen) == (0, [])


@pytest.mark.parametrize("accepted", [True, False])
def test_products_from_the_observation_equal_those_of_a_fresh_pass(accepted: bool) -> None:
    model, grad = filled(300, 4, 6)
    step, grad_new = model.propose_(grad, 0.5), grad + torch.randn_like(grad)
    model.observe_(step.vector, grad, grad_new)
    if accepted:
        model.accept()
    now = grad_new if accepted else grad
    first = model.propose_(now, 0.3)
    vector = first.vector.clone()
    model.begin(now)
    again = model.propose_(now, 0.3)
    assert torch.allclose(vector, again.vector, rtol=1e-9, atol=1e-12)
    assert first.predicted == pytest.approx(again.predicted, rel=1e-9)


@pytest.mark.parametrize("n", [1, 7, 8_192, 8_193, 32_769, 100_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gram_matrix_of_any_length_is_accurate(n: int, dtype: torch.dtype) -> None:
    model, grad = LSR1(n, 3, dtype, CPU), torch.ones(n, dtype=dtype)
    torch.manual_seed(0)
    model.begin(grad)
    for _ in range(3):
        new = grad + 0.1 * torch.rand_like(grad)
        model.observe_(torch.rand_like(grad), grad, new)
        grad = new
        model.accept()
    rows = model.pairs.rows.double().numpy()
    used = sorted(row for slot in model.pairs.order for row in (2 * slot, 2 * slot + 1))
    norms = np.linalg.norm(rows, axis=1)[used]
    error = np.abs(model.pairs.products - rows @ rows.T)[np.ix_(used, used)]
    assert model.count >= 1 and (error <= model.noise * np.outer(norms, norms)).all()
    products = np.abs(model._products[used] - rows[used] @ grad.double().numpy())
    assert (products <= model.noise * norms * math.sqrt(n) * 2).all()


@pytest.mark.parametrize("radius", [1e-6, 1e-3, 0.1, 3.0, 100.0])
@pytest.mark.parametrize("cut", [1e-2, 1e-6])
def test_float32_step_stays_within_the_radius(radius: float, cut: float) -> None:
    model, grad = filled(60_000, 5, 8, dtype=torch.float32, cut=cut)
    for _ in range(6):  # nearly collinear steps: the hardest for rounding
        step = model.propose_(grad, radius)
        length = float(step.vector.double().norm())
        assert length <= radius * (1 + 1e-6)
        assert length == pytest.approx(step.norm, rel=1e-3 if cut > 1e-3 else 0.1)
        grad_new = grad + 0.5 * step.vector + 1e-3 * grad
        model.observe_(step.vector, grad, grad_new)
        model.accept()
        grad = grad_new


@pytest.mark.fault(2)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_non_finite_gradient_never_enters_the_memory(bad: float) -> None:
    model, grad = filled(40, 3, 2)
    before = model.propose_(grad, 0.5)
    vector, gram = before.vector.clone(), model.pairs.products.copy()
    grad_new = grad.clone()
    grad_new[7] = bad
    seen = model.observe_(before.vector, grad, grad_new)
    assert not seen.finite and not seen.taken and model.count == 2
    assert torch.equal(model.propose_(grad, 0.5).vector, vector)
    used = [row for slot in model.pairs.order for row in (2 * slot, 2 * slot + 1)]
    assert np.array_equal(gram[np.ix_(used, used)], model.pairs.products[np.ix_(used, used)])


def test_non_finite_gradient_at_the_start_gives_a_flagged_zero_step() -> None:
    model = LSR1(5, 2, torch.float64, CPU)
    grad = torch.tensor([1.0, math.nan, 0.0, 0.0, 0.0], dtype=torch.float64)
    assert math.isnan(model.begin(grad))
    step = model.propose_(grad, 1.0)
    assert not step.finite and step.predicted == step.norm == 0 and not step.vector.any()


@pytest.mark.fault(9)
def test_useless_pairs_are_refused_and_counted() -> None:
    model, grad = filled(20, 3, 2)
    zero, one = torch.zeros_like(grad), torch.ones_like(grad)
    assert not model.observe_(zero, grad, grad + one).taken  # s = 0
    step = model.pairs.rows[2 * model.pairs.order[-1]].clone()
    change = model.pairs.rows[2 * model.pairs.order[-1] + 1].clone()
    assert not model.observe_(step, grad, grad + change).taken  # the newest pair again: y = Bs
    assert model.skipped == 2 and model.count == 2


def test_rejected_pair_leaves_the_step_and_the_gradient_alone() -> None:
    model, grad = filled(50, 3, 5)
    first = model.propose_(grad, 0.5)
    norm = first.vector.clone()
    model.observe_(first.vector, grad, torch.full_like(grad, math.inf))
    assert torch.equal(first.vector, norm)


@pytest.mark.fault(10)
@pytest.mark.parametrize(("change", "expected"), [(1e-12, 1e-8), (1e12, 1e8), (2.0, 2.0), (-2.0, 1.0)])
def test_gamma_is_clamped_and_needs_positive_curvature(change: float, expected: float) -> None:
    model = LSR1(4, 2, torch.float64, CPU)
    grad, step = torch.zeros(4, dtype=torch.float64), torch.eye(4, dtype=torch.float64)[0]
    model.begin(grad)
    assert model.observe_(step, grad, change * step).taken
    assert model.gamma == pytest.approx(expected)


@pytest.mark.fault(25)
def test_memory_zero_learns_gamma_alone() -> None:
    model, grad = filled(10, 0, 3)
    assert model.count == 0 and model.gamma != 1.0
    step = model.propose_(grad, 1e6)
    assert torch.allclose(step.vector, -grad / model.gamma)
    assert step.predicted == pytest.approx(float(grad @ grad) / (2 * model.gamma))


@pytest.mark.fault(6)
def test_gradient_zero_is_a_zero_step() -> None:
    for model in (LSR1(6, 2, torch.float32, CPU), FirstOrder(6, torch.float32, CPU)):
        grad = torch.zeros(6)
        assert model.begin(grad) == 0
        step = model.propose_(grad, 1.0)
        assert step.finite and step.predicted == step.norm == 0 and not step.vector.any()


def test_reset_forgets() -> None:
    model, grad = filled(30, 3, 5)
    model.reset()
    assert model.count == 0 and not model.propose_(grad, 1.0).finite  # begin is missing
    model.begin(grad)
    assert torch.allclose(model.propose_(grad, 0.1).vector, -0.1 * grad / grad.norm())


def test_quadratic_is_solved_in_n_plus_few_steps() -> None:
    n, dtype = 6, torch.float64
    diagonal, grad = torch.linspace(1, 50, n, dtype=dtype), torch.ones(n, dtype=dtype)
    model, point = LSR1(n, n, dtype, CPU, cut=FINE), grad / diagonal
    model.begin(grad)
    for _ in range(2 * n):
        step = model.propose_(grad, 10.0)
        point = point + step.vector
        new = diagonal * point
        model.observe_(step.vector, grad, new)
        model.accept()
        grad = new
    assert float(grad.norm()) < 1e-8


def test_first_order_model() -> None:
    model: Model = FirstOrder(3, torch.float64, CPU)
    grad, new = torch.tensor([3.0, 0.0, 4.0], dtype=torch.float64), torch.tensor([0.0, 2.0, 0.0], dtype=torch.float64)
    assert model.begin(grad) == 5.0
    step = model.propose_(grad, 2.0)
    assert torch.allclose(step.vector, -0.4 * grad) and step.predicted == 10.0 and step.hits_boundary
    seen = model.observe_(step.vector, grad, new)
    assert seen.finite and not seen.taken
    assert model.propose_(grad, 1.0).predicted == 5.0  # rejected: the gradient stays
    model.accept()
    assert model.propose_(new, 1.0).predicted == 2.0
    assert not model.observe_(step.vector, grad, new * math.nan).finite
    model.accept()
    assert not model.propose_(new, 1.0).finite
    model.reset()
    assert not model.propose_(grad, 1.0).finite


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((0, 2, torch.float32), "n_params >= 1"), ((3, -1, torch.float32), "memory >= 0"), ((3, 2, torch.float16), "torch.float16")],
)
def test_wrong_arguments_are_refused(arguments: tuple[int, int, torch.dtype], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LSR1(*arguments, CPU)
