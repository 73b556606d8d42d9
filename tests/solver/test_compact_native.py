"""The compiled small matrices against their twins in numpy: the same decisions, and numbers that differ by rounding."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from solver_cases import Array, Case, cases, memories
from test_compact import CUT, NOISE, gram_of

from apts_mpi.native import extension, small
from apts_mpi.solver.compact import ADMISSION, Compact, Gram, Spectrum, magnitude, psi_gram, spectrum, sr1
from apts_mpi.solver.obs import Combination, GradProducts, minimise
from apts_mpi.solver.subproblem import ITERATIONS, Solution

pytestmark = pytest.mark.skipif(not small.compiled(), reason=f"kernels: {extension.state()}")

Step = tuple[Solution, Combination]
ANY = st.floats(allow_nan=True, allow_infinity=True)
PLAIN = st.sampled_from((0.0, 1.0, -1.0, 2.0, 3.0, 0.5))  # sums of these are exact, so that both meet the same zeros
WILD = st.sampled_from((0.0, 1.0, -1.0, 2.0, 0.5, 1e-300, 1e160, -1e300, math.nan, math.inf, -math.inf))


def twin(function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of the numpy code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(small, "compiled", lambda: False)
        return function(*arguments)


def close(found: Any, wanted: Any, tolerance: float, least: float = 0.0) -> bool:
    """Up to a share of the largest entry, or of ``least``; what is not finite is the same in both."""
    found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    if found.shape != wanted.shape:
        return False
    fine = np.isfinite(wanted)
    size = max(np.abs(wanted[fine]).max(initial=0.0), least if math.isfinite(least) else 0.0)
    apart = np.abs(found[fine] / size - wanted[fine] / size).max(initial=0.0) if size > 0 else np.abs(found[fine]).max(initial=0.0)
    return bool(apart <= tolerance) and np.array_equal(found[~fine], wanted[~fine], equal_nan=True)


def same_step(found: Step, wanted: Step, model: Spectrum, tolerance: float) -> bool:
    """Every decision the same, and every number up to rounding; the coefficients of S and Y are differences of larger numbers."""
    (solution, weights), (other, weights_other) = found, wanted
    decisions = [(s.hits_boundary, s.hard_case, s.finite, s.coefficients.shape) for s in (solution, other)]
    names = ("coefficients", "sigma", "predicted", "step_norm")
    pairs = [*((getattr(solution, name), getattr(other, name)) for name in names), (weights.grad, weights_other.grad)]
    size = float(np.abs(model.basis).max(initial=0.0)) * other.step_norm
    fine = close(weights.y, weights_other.y, tolerance, size) and close(weights.s, weights_other.s, tolerance, size * abs(model.gamma))
    terms = float(np.abs(model.eigenvalues).max(initial=abs(model.gamma))) * other.step_norm * other.step_norm
    fine = fine and close(solution.curvature, other.curvature, tolerance, terms)
    fine = fine and all(close(*pair, tolerance) for pair in pairs) and 0 <= solution.iterations <= ITERATIONS
    return fine and decisions[0] == decisions[1]


def growth_of(gram: Gram, gamma: float, compact: Compact) -> float:
    """How much the recursion amplifies rounding: the largest terms of delta_j, before those within cancel, over delta_j."""
    cross, size, worst = np.abs(gram.sy.T - gamma * gram.ss), magnitude(gram, gamma), 1.0
    for j, i in enumerate(compact.used):
        column = np.abs(compact.p[:, j]) @ size * math.sqrt(gram.ss[i, i])
        inner = np.sum((np.abs(compact.p[:, :j]).T @ cross[:, i]) ** 2 / np.abs(compact.delta[:j]))
        worst = max(worst, float(column + inner) / abs(compact.delta[j]))
    return worst


def over_floor(gram: Gram, gamma: float, compact: Compact, j: int) -> float:
    """|delta_j| over what it must reach, for a pair j after those of ``compact`` that are older."""
    older = compact.used < j
    p, cross = compact.p[:, older], (gram.sy.T - gamma * gram.ss)[:, j]
    column = np.eye(len(gram.ss))[j] - p @ ((p.T @ cross) / compact.delta[older])
    u_norm = math.sqrt(max(float(column @ psi_gram(gram, gamma) @ column), 0.0))
    floor = math.sqrt(gram.ss[j, j]) * max(ADMISSION * u_norm, NOISE * float(np.abs(column) @ magnitude(gram, gamma)))
    return abs(float(column @ cross)) / floor if floor > 0 else math.inf


@pytest.mark.timeout(3600)
@given(memories())
@cases(0.3)
def test_recursion(case: Case) -> None:
    gram = gram_of(case)
    found, wanted = sr1(gram, case.gamma, NOISE), twin(sr1, gram, case.gamma, NOISE)
    growth = growth_of(gram, case.gamma, wanted)
    if found.used.tolist() != wanted.used.tolist():
        first = min({*found.used.tolist()} ^ {*wanted.used.tolist()})
        assert growth > 1e5 or 0.1 < over_floor(gram, case.gamma, wanted, first) < 10, "rounding decides on the edge alone"
        return
    assert found.used.dtype == wanted.used.dtype and found.p.shape == wanted.p.shape
    if growth > 1e5:
        return
    assert np.all(np.abs(found.delta - wanted.delta) <= 1e-14 * growth**2 * np.abs(wanted.delta))
    assert close(found.p, wanted.p, 1e-14 * growth**2)


@pytest.mark.timeout(3600)
@given(memories(), st.sampled_from((CUT, 1e-5, 1e-2)), st.sampled_from((0, 2)))
@cases(0.3)
def test_eigenvalues_and_what_spans_their_eigenvectors(case: Case, cut: float, fewer: int) -> None:
    gram, n = gram_of(case), max(case.steps.shape[1] - fewer, 1)
    compact = twin(sr1, gram, case.gamma, NOISE)
    found, wanted = spectrum(gram, compact, NOISE, cut, n), twin(spectrum, gram, compact, NOISE, cut, n)
    size = magnitude(gram, case.gamma)[:, None]
    if found.basis.shape != wanted.basis.shape:
        used = size[compact.used]
        w = np.linalg.eigvalsh(psi_gram(gram, case.gamma)[np.ix_(compact.used, compact.used)] / (used * used.T))
        assert np.abs(w / w[-1] / cut - 1).min() < 1e-4, "rounding decides at the cut alone"
        return
    middle = (np.abs(compact.p) / np.abs(compact.delta)) @ np.abs(compact.p).T  # before its terms cancel
    accuracy, terms = 1e-14 * wanted.noise / NOISE, float((middle * size * size.T).max(initial=0.0))
    assert close(found.noise, wanted.noise, accuracy) and found.gamma == wanted.gamma
    assert np.array_equal(found.eigenvalues, np.sort(found.eigenvalues))
    assert close(found.eigenvalues, wanted.eigenvalues, 10 * accuracy, least=terms)
    a, b = found.basis * size, wanted.basis * size
    assert close(a @ a.T, b @ b.T, 10 * accuracy)
    shift, shift_other = found.eigenvalues - case.gamma, wanted.eigenvalues - case.gamma
    assert close((a * shift) @ a.T, (b * shift_other) @ b.T, 10 * accuracy, least=terms * float(np.abs(b @ b.T).max(initial=0.0)))


@pytest.mark.timeout(3600)
@given(memories(), st.sampled_from((1e-9, 1.0, 1e9)))
@cases(0.3)
def test_step(case: Case, stretch: float) -> None:
    gram, g, n = gram_of(case), case.grad, case.steps.shape[1]
    model = twin(spectrum, gram, twin(sr1, gram, case.gamma, NOISE), NOISE, CUT, n)
    products = GradProducts(case.steps @ g, case.changes @ g, float(g @ g))
    arguments = (gram, model, products, n, case.radius * stretch)
    outside = products.gg - float(np.sum((model.basis.T @ (products.yg - case.gamma * products.sg)) ** 2))
    if products.gg > 0 and 0.1 < outside / (model.noise * products.gg) < 10:
        return  # rounding decides whether g leaves the span
    lost = (products.gg / outside if outside > model.noise * products.gg else 1.0) * model.noise / NOISE
    found, wanted = minimise(*arguments), twin(minimise, *arguments)
    if found[0].hard_case and wanted[0].hard_case:  # both ways along the leftmost eigenvector are as good, and rounding chooses
        names = ("sigma", "predicted", "step_norm")
        assert all(close(getattr(found[0], name), getattr(wanted[0], name), 1e-10 * lost) for name in names)
        assert close(np.abs(found[0].coefficients), np.abs(wanted[0].coefficients), 1e-8 * lost)
        return
    assert same_step(found, wanted, model, 1e-10 * lost)


@pytest.mark.fault(11)
@pytest.mark.fault(12)
@pytest.mark.timeout(3600)
@given(st.lists(st.tuples(st.one_of(ANY, WILD, st.floats(-10, 10)), st.one_of(ANY, WILD, st.floats(-10, 10))), max_size=6), ANY)
@example([(1.0, 1.0), (-1.0, 0.0)], 2.0)  # hard case
@example([(1.0, 1.0), (-1.0, 1e-300)], 2.0)
@example([(-1.0, -1e-8), (0.0, 1.0)], 1e-300)
@example([(0.0, 0.0), (2.0, 1.0)], 5.0)
@example([(-1e300, 0.0)], 1e-200)
@example([(0.0, 1.0), (1.0, 2.0)], 1e6)  # steepest where nothing is curved
@example([(1.0, 2 - 2e-5), (-1.0, 0.0)], 1.0)  # hard, since the rest has all but 1e-5 of the length
@example([(1.0, 2 - 2e-10), (-1.0, 0.0)], 1.0)  # not hard, with 1e-10
@cases(0.5)
def test_any_problem_in_its_eigenbasis(pairs: list[tuple[float, float]], radius: float) -> None:
    """With Psi of orthonormal columns and gamma = 0 the gradient in the eigenbasis is Y'g."""
    lam, g = np.array(pairs, dtype=np.float64).reshape(-1, 2).T
    q, none = len(lam), np.zeros((len(lam), len(lam)))
    for square in (1.0, math.nan):  # g'g, of which nothing is left where there are as many eigenvalues as parameters
        model, products = Spectrum(0.0, lam, np.eye(q), NOISE), GradProducts(np.zeros(q), np.clip(g, -1e150, 1e150), square)
        arguments = (Gram(none, none, none), model, products, q, radius)
        assert same_step(minimise(*arguments), twin(minimise, *arguments), model, 1e-9)


@st.composite
def numbers(draw: st.DrawFn) -> tuple[Gram, float, GradProducts, float, int]:
    """Gram matrices that no vectors have, gamma, products with a gradient, a radius and a number of parameters."""
    k = draw(st.integers(0, 4))
    entry = draw(st.sampled_from((PLAIN, st.one_of(PLAIN, st.just(math.nan), st.just(math.inf)), WILD, st.one_of(WILD, ANY))))

    def array(*shape: int) -> Array:
        return np.array(draw(st.lists(entry, min_size=math.prod(shape), max_size=math.prod(shape))), np.float64).reshape(shape)

    def symmetric() -> Array:
        matrix = array(k, k)
        return np.where(np.tri(k) > 0, matrix, matrix.T)

    gram, products = Gram(symmetric(), array(k, k), symmetric()), GradProducts(array(k), array(k), draw(entry))
    return gram, draw(entry), products, draw(entry), draw(st.integers(1, 6))


@pytest.mark.fault(10)
@pytest.mark.timeout(3600)
@given(numbers())
@cases(0.6)
def test_whatever_comes_in_the_decisions_are_those_of_the_twin(case: tuple[Gram, float, GradProducts, float, int]) -> None:
    gram, gamma, products, radius, n = case
    compact, found = twin(sr1, gram, gamma, NOISE), sr1(gram, gamma, NOISE)
    assert found.used.tolist() == compact.used.tolist()
    model, seen = twin(spectrum, gram, compact, NOISE, CUT, n), spectrum(gram, compact, NOISE, CUT, n)
    if seen.basis.shape != model.basis.shape:
        size = magnitude(gram, gamma)[compact.used]
        scaled = psi_gram(gram, gamma)[np.ix_(compact.used, compact.used)] / np.outer(size, size)
        assert np.abs(scaled).max() > 1e8 * np.linalg.eigvalsh(scaled)[-1], "rounding decides only far below a negative eigenvalue"
    arguments = (gram, model, products, n, radius)
    assert same_step(minimise(*arguments), twin(minimise, *arguments), model, 1e-7)


@pytest.mark.parametrize("k", [1, 2, 3, 10, 22, 60])
@pytest.mark.parametrize("kind", ["any", "degenerate", "graded", "arrow", "diagonal", "blocks"])
def test_eigenproblems_of_every_size(k: int, kind: str) -> None:
    """Unit vectors s_i and y_i = A s_i at gamma = 0: B is A where the pairs span everything."""
    rng = np.random.default_rng(k)
    q, diagonal = np.linalg.qr(rng.standard_normal((k, k)))[0], rng.standard_normal(k)
    if kind == "degenerate":
        diagonal = np.where(np.arange(k) % 2 == 0, 2.0, -3.0)
    elif kind == "graded":
        diagonal = 10.0 ** -np.linspace(0, 4, k)
    a = (q * diagonal) @ q.T
    if kind == "arrow":
        a = np.diag(1.0 + np.arange(k)) + 0.5 * (np.eye(k)[0] + np.eye(k)[:, :1] - 2 * np.diag(np.eye(k)[0]))
    elif kind == "diagonal":
        a = np.diag(diagonal)
    elif kind == "blocks":
        a = np.kron(np.eye((k + 1) // 2), np.array([[1.0, 3.0], [3.0, -2.0]]))[:k, :k]
    a = 0.5 * (a + a.T)
    gram = Gram(np.eye(k), a, a @ a)
    middle = np.linalg.inv(a)  # B = Psi A^-1 Psi' with Psi = A
    w, v = np.linalg.eigh(middle)
    compact = Compact(0.0, np.arange(k), v, 1 / w)
    found = spectrum(gram, compact, NOISE, 1e-15, k)
    assert close(found.eigenvalues, np.linalg.eigvalsh(a), 1e-14 * k * (np.linalg.cond(a) if kind != "degenerate" else 10.0))
    columns = a @ found.basis
    assert np.abs(columns.T @ columns - np.eye(k)).max() <= 1e-14 * k * np.linalg.cond(a) ** 2
    assert np.abs(a @ columns - columns * found.eigenvalues).max() <= 1e-14 * k * np.linalg.cond(a) ** 2 * np.abs(a).max()


@pytest.mark.fault(8)
@pytest.mark.parametrize("over", [1 - 1e-5, 1 + 1e-5])
def test_a_pair_at_the_edge_of_the_admission(over: float) -> None:
    """s of length 1, gamma = 1 and u = y - s of length 1, or gamma = 0 and y of length 1 that rounding may have turned."""
    delta, one = over * ADMISSION, np.eye(1)
    by_size = (Gram(one, (1 + delta) * one, (2 + 2 * delta) * one), 1.0, NOISE)
    by_noise = (Gram(one, 1e-3 * over * one, one), 0.0, 1e-3)
    for arguments in (by_size, by_noise):
        assert sr1(*arguments).used.tolist() == twin(sr1, *arguments).used.tolist() == ([0] if over > 1 else [])


@pytest.mark.fault(11)
@pytest.mark.parametrize("n", [1, 2])
def test_no_row_of_s_leaves_where_the_span_is_everything(n: int) -> None:
    gram, model = Gram(5 * np.eye(1), -5 * np.eye(1), np.eye(1)), Spectrum(-1.0, np.ones(1), np.eye(1), NOISE)
    arguments = (gram, model, GradProducts(np.zeros(1), np.zeros(1), 0.0), n, 1.0)
    found, wanted = minimise(*arguments), twin(minimise, *arguments)
    assert same_step(found, wanted, model, 1e-12) and found[0].hard_case == (n == 2)


def test_arrays_of_any_strides() -> None:
    rng = np.random.default_rng(3)
    rows, wide = rng.standard_normal((8, 9)), rng.standard_normal(8)
    whole, found = rows @ rows.T, []
    for copy, turn in ((np.asarray, np.asfortranarray), (np.ascontiguousarray, np.ascontiguousarray)):
        gram = Gram(copy(whole[::2, ::2]), copy(whole[::2, 1::2]), copy(whole[1::2, 1::2]))
        compact = sr1(gram, 1.0, NOISE)
        model = spectrum(gram, Compact(1.0, compact.used, turn(compact.p), compact.delta), NOISE, CUT, 9)
        model = Spectrum(1.0, model.eigenvalues, turn(model.basis), model.noise)
        found.append(minimise(gram, model, GradProducts(copy(wide[::2]), copy(wide[1::2]), 50.0), 9, 0.1)[1])
    assert found[0].grad == found[1].grad and found[0].grad != 0
    assert np.array_equal(found[0].s, found[1].s) and np.array_equal(found[0].y, found[1].y) and found[0].y.all()
