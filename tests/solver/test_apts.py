"""APTS against its dense twin, and what must hold at every iteration."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

sys.path.append(str(Path(__file__).parents[1] / "reference"))
from apts_cases import CLASSES, HIDDEN, cut, data, settings, solver
from dense_apts import DenseAPTS, Network

from apts_mpi.contracts import Status
from apts_mpi.recording import Recordings
from apts_mpi.solver.local import LocalResult, LocalStart, Spare
from apts_mpi.solver.lsr1 import LSR1
from apts_mpi.solver.metric import Metric
from apts_mpi.solver.sweep import Sweep
from apts_mpi.solver.vectors import norm

CASES = {
    "lsr1": {},
    "paper": {},
    "default": {},
    "default, no metric": {"local": {"memory": 0}},
    "default, no momentum": {"solver": {"momentum": False}},
    "default, sum": {"solver": {"combine": "sum"}},
    "default, one pair": {"local": {"memory": 1}},
    "shared": {"solver": {"radius": "shared"}},
    "sum own": {"solver": {"combine": "sum"}},
    "first": {"local": {"solver": "first"}, "global_step": {"solver": "first"}},
    "poor steps accepted": {"trust_region": {"eta0": 0.05, "eta1": 0.6, "eta2": 0.9}},
    "no global step": {"global_step": {"solver": "none"}},
    "not consistent": {"solver": {"consistent": False}},
    "reached 0": {"trust_region": {"reached": 0.0}},
    "memory 1": {"local": {"memory": 1}, "global_step": {"memory": 1}},
    "memory 0": {"local": {"memory": 0}, "global_step": {"memory": 0}},
}


@pytest.mark.parametrize("batch", [0, 20])
@pytest.mark.parametrize("subdomains", [1, 2, 3])
@pytest.mark.parametrize("case", CASES)
def test_same_trajectory_as_dense_twin(case: str, subdomains: int, batch: int) -> None:
    name = case.split(",")[0] if case.startswith(("paper", "default")) else "lsr1"
    config = settings(name, **CASES[case])
    fast, orders = solver(config, subdomains, batch=batch)
    x, y = data(60)
    for model in (fast._model, fast._metric, getattr(fast._local, "_model", None)):
        if isinstance(model, LSR1 | Metric):
            model.cut = 1e-12  # as good as the textbook's recursion, which cuts nothing
    slow = DenseAPTS(Network(x.numpy(), y.numpy(), HIDDEN, CLASSES), fast.theta.numpy(), config, config.trust_region.radius_init)
    batches = orders[0].batches
    for k in range(6):
        info = fast.step(k // batches, k % batches)
        slow.step(cut(orders, k // batches, k % batches), batches == 1)
        assert info.rho == pytest.approx(slow.rhos[-1], rel=1e-4), k
        assert np.linalg.norm(fast.theta.numpy() - slow.theta) <= 1e-5 * np.linalg.norm(slow.theta), k
        assert (fast.radius, fast.global_radius) == pytest.approx((slow.radius, slow.global_radius))


@pytest.mark.parametrize("combine", ["sum", "mean"])
@pytest.mark.parametrize("name", ["default", "lsr1", "paper"])
def test_summed_step_within_the_radius(name: str, combine: str) -> None:
    fast, _ = solver(settings(name, solver={"combine": combine}), 4, samples=200, batch=100, dtype=torch.float32)
    for k in range(20):
        info = fast.step(k // 2, k % 2)
        assert info.step_norm <= info.radius * (1 + 1e-6)


def test_identical_subdomains_are_one() -> None:
    x, y = data(40)
    config = settings("lsr1", solver={"radius": "shared"})
    one, _ = solver(config, 1, overlap=0.0, tensors=(x, y))
    four, _ = solver(config, 4, overlap=0.0, tensors=(x.repeat(4, 1), y.repeat(4)))
    for _ in range(8):
        one.step()
        four.step()
    assert torch.linalg.vector_norm(one.theta - four.theta) <= 1e-9 * torch.linalg.vector_norm(one.theta)


def test_first_local_gradient_is_the_global_one() -> None:
    """One first-order local iteration per subdomain: with r_i every s_i is parallel to the global gradient."""
    config = settings(local={"solver": "first", "iters": 1, "radius_start": 1.0}, global_step={"solver": "none"})
    fast, _ = solver(config, 3)
    fast.step()
    before, _ = solver(config, 3)
    start = before._begin(0, 0).grad
    for step in fast._steps:
        cosine = float(step @ start / (step.norm() * start.norm()))
        assert cosine == pytest.approx(-1, abs=1e-12)


@pytest.mark.parametrize("batch", [0, 20])
@pytest.mark.parametrize("name", ["lsr1", "paper", "default"])
def test_vectors_that_are_lent_to_the_local_solvers_are_idle(name: str, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bits if they hold nan before and after every local solve."""
    plain, orders = solver(settings(name), 3, batch=batch)
    spoilt, _ = solver(settings(name), 3, batch=batch)
    solve = spoilt._local.solve

    def spoiling(start: LocalStart, out: torch.Tensor) -> LocalResult:
        for vector in (*start.spare, out):
            vector.fill_(math.nan)
        result = solve(start, out)
        for vector in start.spare:
            vector.fill_(math.nan)
        return result

    monkeypatch.setattr(spoilt._local, "solve", spoiling)
    for k in range(6):
        at = divmod(k, orders[0].batches)
        assert spoilt.step(*at) == plain.step(*at) and torch.equal(spoilt.theta, plain.theta), k


NU, LONG = 4, {"iters": 4, "radius_start": 1e-3}


@pytest.mark.parametrize(
    ("local", "after", "batch", "gradients", "values", "vectors"),
    [
        ("lsr1", "lsr1", 0, NU + 2, 0, 3),
        ("first", "first", 0, NU + 2, 0, 3),
        ("lsr1", "none", 0, NU + 1, 0, 2),
        ("lsr1", "lsr1", 30, NU + 3, 0, 4),
        ("first", "first", 30, NU + 2, 1, 3),
        ("lsr1", "none", 30, NU + 1, 1, 2),
    ],
)
def test_work_and_communication(local: str, after: str, batch: int, gradients: int, values: int, vectors: int) -> None:
    """The table of docs/method.md; the first full-batch iteration has a gradient and a vector more."""
    config = settings(local={**LONG, "solver": local}, global_step={"solver": after}, trust_region={"radius_init": 8.0})
    fast, _ = solver(config, 3, overlap=0.0, batch=batch)
    infos = [fast.step(k if not batch else 0, k if batch else 0) for k in range(2)]
    for info, more in zip(infos, (not batch, 0), strict=True):
        samples = batch or 60
        assert (info.gradient_samples, info.value_samples) == ((gradients + more) * samples, values * samples)
        assert (info.reductions, info.local_iters) == (vectors + more, 3 * NU)


@pytest.mark.parametrize(("batch", "values", "first"), [(0, 0, 2), (30, 1, 1)])
def test_work_and_communication_of_sweeps(batch: int, values: int, first: int) -> None:
    """The table of docs/method.md, but that the ``first`` samples of each subdomain are not evaluated again at theta_k."""
    fast, _ = solver(settings("default", local={"chunks_min": 8}), 3, overlap=0.0, batch=batch)
    info = [fast.step(k if not batch else 0, k if batch else 0) for k in range(2)][-1]
    samples, chunks = batch or 60, 3 * 8
    assert info.local_iters == 2 * chunks
    assert (info.reductions, info.gradient_samples, info.value_samples) == (2, 3 * samples - 3 * first, values * samples)


def test_overlap_is_evaluated_on_top_only() -> None:
    nu, config = 2, settings(local={"iters": 2, "radius_start": 1e-3}, trust_region={"radius_init": 8.0})
    fast, orders = solver(config, 3, overlap=0.1)
    borrowed = sum(len(extra) for _, extra in cut(orders))
    fast.step()
    assert fast.step().gradient_samples == (nu + 2) * 60 + (nu + 1) * borrowed


def test_rejected_step_restores_theta_bit_for_bit() -> None:
    config = settings(global_step={"solver": "none"}, trust_region={"radius_init": 8.0, "eta1": 0.999, "eta2": 0.9999})
    fast, _ = solver(config, 2, dtype=torch.float32)
    rejected = 0
    for _ in range(12):
        before = fast.theta.clone()
        if not fast.step().accepted:
            rejected += 1
            assert torch.equal(before, fast.theta)
    assert rejected > 0


@pytest.mark.parametrize(("reached", "factor"), [(0.0, 2.0), (1.0, 1.0)])
def test_the_ball_grows_only_if_the_local_steps_have_reached_their_share_of_it(reached: float, factor: float) -> None:
    config = settings("default", solver={"radius": "own"}, trust_region={"radius_init": 4.0, "reached": reached, "eta2": 0.3})
    fast, _ = solver(config, 3)
    info = fast.step()
    assert info.rho > 0.3 and info.step_norm < 0.99 * info.radius  # good, and shorter than the ball's radius
    assert fast.radius == pytest.approx(info.radius * factor)


@pytest.mark.parametrize("batch", [0, 20])
def test_the_first_radius_does_not_depend_on_where_it_is_sought(batch: int) -> None:
    found = set()
    for guess in (1e-6, 1e-3, 0.7, 10.0, 1e5):
        fast, orders = solver(settings("default", trust_region={"radius_init": guess}), 3, batch=batch)
        infos = [fast.step(k // orders[0].batches, k % orders[0].batches) for k in range(4)]
        assert infos[0].reductions == 2 + (batch == 0) and infos[1].value_samples < infos[0].value_samples, "values alone, and once"
        found.add((infos[0].radius, float(fast.theta.double().sum())))
    assert len(found) == 1 and 0.01 < found.pop()[0] < 10


@pytest.mark.parametrize(("preset", "changed"), [("lsr1", {}), ("default", {"combine": "sum"}), ("default", {"radius": "shared"})])
def test_a_ball_that_paths_do_not_fill_by_themselves_starts_as_it_is_told(preset: str, changed: dict[str, str]) -> None:
    fast, _ = solver(settings(preset, solver=changed, trust_region={"radius_init": 1e-4}), 2)
    assert fast.step().radius == 1e-4


class Slope:
    """A subdomain whose chunks have no gradient of their own, so that a sweep goes straight along the global one."""

    size = 1000

    def cut(self, chunks: int) -> int:
        return chunks

    def chunk_gradient(self, i: int, theta: torch.Tensor, grad: torch.Tensor) -> None:
        grad.zero_()

    def place(self) -> None:
        pass

    def count_chunk(self, i: int) -> None:
        pass


def test_rounding_does_not_take_a_sweep_beyond_its_ball() -> None:
    """Steps of 0.6 units in the last place of theta are rounded up to one, all of them."""
    config, n = settings("default").local, 100
    ones = torch.ones(n)
    sweep = Sweep(config, ones, Recordings(None))
    ball = 0.6 * 2.0**-24 * config.passes * sweep.chunk_count(Slope()) * math.sqrt(n)  # type: ignore[arg-type]
    kept, spare = torch.zeros(sweep.chunk_count(Slope()), n), Spare(*[ones] * 4)  # type: ignore[arg-type]
    start = LocalStart(0, Slope(), ones, ones, 0.0, ones, kept, ball, 1e-9, spare)  # type: ignore[arg-type]
    out = torch.zeros(n)
    found = sweep.solve(start, out)
    assert norm(out) <= ball * (1 + 1e-6) and 0.99 * ball < found.length <= ball


def test_loss_falls_to_the_minimum_of_a_convex_problem() -> None:
    """Softmax regression on labels without a rule: convex, with a finite minimiser."""
    x, _ = data(200)
    labels = torch.from_numpy(np.random.default_rng(5).integers(0, CLASSES, 200))
    config = settings(stop={"grad_norm": 1e-6})
    fast, _ = solver(config, 2, tensors=(x, labels), module=nn.Linear(x.shape[1], CLASSES))
    infos = []
    while len(infos) < 200 and (not infos or infos[-1].status is Status.RUNNING):
        infos.append(fast.step())
    assert infos[-1].status in (Status.GRADIENT, Status.CONVERGED)
    losses = [info.loss for info in infos]
    assert all(new <= old for old, new in zip(losses, losses[1:], strict=False))


class Broken:
    """An objective whose subdomain 0 answers ``value`` from its ``after``-th evaluation on; ``grad`` spoils the gradient alone."""

    def __init__(self, fast, value: float, after: int, grad: bool) -> None:
        self.sub = fast._objective.subdomains[0]
        self.owned, self.calls, self.value, self.after, self.grad = self.sub.owned, 0, value, after, grad
        self.sub.owned = self

    def __call__(self, theta, grad):
        self.calls += 1
        value = self.owned(theta, grad)
        if self.calls <= self.after:
            return value
        if self.grad and grad is not None:
            grad[0] = self.value
            return value
        return self.value


@pytest.mark.fault(1)
@pytest.mark.fault(2)
@pytest.mark.fault(3)
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nonfinite_trials_are_rejected_and_end_the_run(value: float, grad: bool) -> None:
    """Rejected, radius shrunk, last good theta kept, K in a row end the run."""
    fast, _ = solver(settings(stop={"nonfinite": 3}), 2)
    fast.step()
    Broken(fast, value, 0, grad)
    theta, radius = fast.theta.clone(), fast.radius
    infos = [fast.step() for _ in range(3)]
    assert [info.status for info in infos] == [Status.RUNNING, Status.RUNNING, Status.NONFINITE]
    assert not any(info.accepted or info.global_accepted for info in infos)
    assert torch.equal(theta, fast.theta) and fast.radius == radius / 8


def test_nonfinite_start_is_a_status() -> None:
    fast, _ = solver(settings(), 2)
    Broken(fast, math.nan, 0, False)
    theta = fast.theta.clone()
    assert fast.step().status is Status.NONFINITE
    assert torch.equal(theta, fast.theta)


@pytest.mark.fault(6)
def test_zero_gradient_is_stationary() -> None:
    """A network whose last layer sees nothing and answers evenly, on even labels of two classes."""
    x, _ = data(32)
    fast, _ = solver(settings(), 2, tensors=(x, torch.arange(32) % 2), overlap=0.0)
    fast.theta.zero_()
    fast.theta[-1] = -torch.inf  # bias of the third class: its probability is exactly zero
    info = fast.step()
    assert info.status is Status.STATIONARY and info.grad_norm == 0 and info.local_iters == 0 and info.step_norm == 0


@pytest.mark.fault(15)
def test_every_local_step_rejected() -> None:
    """Nothing moves, the ball shrinks, the global step goes on."""
    fast, _ = solver(settings(local={"iters": 1}, trust_region={"radius_init": 4.0, "radius_max": 4.0, "eta1": 0.9999, "eta2": 0.99999}), 3)
    info = fast.step()
    assert info.local_accepted == 0 and info.step_norm == 0 and not info.accepted
    assert fast.radius == 2.0
    borrowed = 6
    assert info.gradient_samples == 60 + (60 + 2 * borrowed) + 60  # theta_k, one local trial each, the global trial: not theta_k again
    assert info.reductions == 3


def test_no_local_point_is_evaluated_twice() -> None:
    """A rejected step shrinks the bound that was in force, also where the rest of the ball was the bound."""
    config = settings(trust_region={"radius_init": 1.0, "eta1": 0.97, "eta2": 0.98}, global_step={"solver": "none"})
    fast, _ = solver(config, 2)
    subdomain, seen = fast._objective.subdomains[0], []
    local = subdomain.local
    subdomain.local = lambda theta, grad: seen.append(theta.numpy().tobytes()) or local(theta, grad)
    for _ in range(10):
        seen.clear()
        fast.step()
        assert len(set(seen)) == len(seen)


def test_a_subdomain_recovers_from_a_radius_below_rounding() -> None:
    """Trials without a value shrink its radius until nothing can be predicted; good ones move it again."""
    fast, _ = solver(settings(global_step={"solver": "none"}), 2, dtype=torch.float32)
    subdomain = fast._objective.subdomains[0]
    local, broken = subdomain.local, True
    subdomain.local = lambda theta, grad: math.nan if broken else local(theta, grad)
    for _ in range(8):
        fast.step()
    broken = False
    moved = []
    for _ in range(4):
        fast.step()
        moved.append(float(fast._steps[0].norm()))
    assert max(moved) > 0


@pytest.mark.fault(28)
def test_uneven_subdomains_give_the_serial_gradient() -> None:
    one, _ = solver(settings(), 1, samples=61)
    seven, _ = solver(settings(), 7, samples=61)
    a, b = one._begin(0, 0), seven._begin(0, 0)
    assert a.loss == pytest.approx(b.loss, rel=1e-12)
    assert torch.linalg.vector_norm(a.grad - b.grad) <= 1e-12 * torch.linalg.vector_norm(a.grad)
