"""The baselines against textbook twins in NumPy, their messages, and what they do with numbers that are not finite."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from apts_cases import CLASSES, HIDDEN, data
from baseline_cases import Rule, mean, rows_of, settings, stepper
from dense_apts import DenseAPTS, Network

from apts_mpi.baseline import METHODS, BaselineConfig
from apts_mpi.config import Config
from apts_mpi.contracts import Status
from apts_mpi.parallel.serial import SerialCommunicator
from apts_mpi.presets import preset
from apts_mpi.solver.apts import APTS
from apts_mpi.solver.average import Averaged
from apts_mpi.solver.build import check_method, outer_per_epoch, used_minibatches
from apts_mpi.solver.global_only import GlobalTrustRegion
from apts_mpi.solver.lsr1 import LSR1
from apts_mpi.solver.schedule import Schedule

RULES = {
    "plain": ("sgd", {"momentum": 0.0}),
    "momentum": ("sgd", {}),
    "nesterov": ("sgd", {"nesterov": True, "momentum": 0.8}),
    "decay": ("sgd", {"weight_decay": 0.03}),
    "nesterov decay": ("sgd", {"nesterov": True, "weight_decay": 0.03}),
    "adam": ("adam", {}),
    "adam decay": ("adam", {"weight_decay": 0.03}),
    "adamw": ("adamw", {"weight_decay": 0.3}),
}


def twin_network() -> Network:
    x, y = data(60)
    return Network(x.numpy(), y.numpy(), HIDDEN, CLASSES)


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("batch", [0, 20])
@pytest.mark.parametrize("subdomains", [1, 3])
@pytest.mark.parametrize("name", RULES)
def test_trajectory_of_the_rule(name: str, subdomains: int, batch: int, overlap: bool) -> None:
    method, keys = RULES[name]
    config = settings(method, subdomains, baseline={"lr": 0.05, "overlap": overlap, "bucket": 64, "schedule": "step", "step": 2, **keys})
    fast, objective, orders = stepper(config, batch=batch)
    theta, net, rule, batches = fast.theta.numpy().copy(), twin_network(), Rule(config, method), orders[0].batches
    for k in range(7):
        info = fast.step(k // batches, k % batches)
        rows = sum(rows_of(orders, k // batches, k % batches), [])
        loss, grad = mean(net, theta, rows)
        theta = rule(theta, grad, 0.05 * 0.1 ** (k // batches // 2))
        assert (info.loss, info.grad_norm) == pytest.approx((loss, np.linalg.norm(grad)), rel=1e-9), k
        assert np.linalg.norm(fast.theta.numpy() - theta) <= 1e-9 * np.linalg.norm(theta), k
        assert info.accepted and info.status is Status.RUNNING and info.gradient_samples == len(rows) and info.value_samples == 0


@pytest.mark.parametrize("keys", [{"period": 1}, {"period": 3}, {"period": 5, "nesterov": True, "weight_decay": 0.02}, {"momentum": 0.0}])
@pytest.mark.parametrize("subdomains", [1, 3])
@pytest.mark.parametrize("batch", [0, 10])
def test_trajectory_of_local_sgd(batch: int, subdomains: int, keys: dict[str, float]) -> None:
    config = settings("local-sgd", subdomains, baseline={"lr": 0.05, "period": 4, **keys})
    fast, objective, orders = stepper(config, samples=59, batch=batch)
    x, y = data(59)
    net, batches, period = Network(x.numpy(), y.numpy(), HIDDEN, CLASSES), orders[0].batches, config.baseline.period
    theta, rules = fast.theta.numpy().copy(), [Rule(config, "sgd") for _ in range(subdomains)]
    per_epoch = outer_per_epoch(config, batches)
    for k in range(2 * per_epoch + 1):
        epoch, first = k // per_epoch, k % per_epoch * period
        info = fast.step(epoch, k % per_epoch)
        used = [0] * period if batches == 1 else [b for b in range(first, first + period) if b < batches]
        points, losses, weights = [theta] * subdomains, np.zeros(subdomains), np.zeros(subdomains)
        for b in used:
            cut = rows_of(orders, epoch, b)
            for i, rows in enumerate(cut):
                share = len(rows) / sum(map(len, cut)) / len(used)
                value, grad = mean(net, points[i], rows)
                points[i] = rules[i](points[i], grad, 0.05)
                losses[i] += share * value
                weights[i] += share
        step = sum(w * (point - theta) for w, point in zip(weights, points, strict=True))
        theta = theta + step
        assert info.loss == pytest.approx(losses.sum(), rel=1e-9) and info.step_norm == pytest.approx(np.linalg.norm(step), rel=1e-7)
        assert np.linalg.norm(fast.theta.numpy() - theta) <= 1e-9 * np.linalg.norm(theta), k
        assert info.local_iters == len(used) * subdomains and info.reductions == 1 and math.isnan(info.grad_norm)


@pytest.mark.parametrize("solver", ["lsr1", "first"])
@pytest.mark.parametrize("batch", [0, 20])
def test_trajectory_of_the_global_trust_region(batch: int, solver: str) -> None:
    config = settings("trust-region", global_step={"solver": solver})
    fast, objective, orders = stepper(config, batch=batch)
    assert isinstance(fast, GlobalTrustRegion)
    if isinstance(fast._model, LSR1):
        fast._model.cut = 1e-12  # as good as the textbook's recursion
    net, batches = twin_network(), orders[0].batches
    slow = DenseAPTS(net, fast.theta.numpy(), config, config.trust_region.radius_init)
    theta, radius = fast.theta.numpy().copy(), config.trust_region.radius_init
    for k in range(12):
        info = fast.step(k // batches, k % batches)
        rows = sum(rows_of(orders, k // batches, k % batches), [])
        loss, grad = mean(net, theta, rows)
        step, predicted = slow._propose(solver, slow.memory, grad, radius)
        new, grad_new = mean(net, theta + step, rows)
        accepted, rho = slow._judge(loss - new, predicted)
        assert (info.rho, info.radius, info.loss) == pytest.approx((rho, radius, loss), rel=1e-5) and info.accepted == accepted, k
        radius = slow._next(radius, accepted, rho, np.linalg.norm(step) >= radius * (1 - 1e-9))
        slow.memory.offer(step, grad_new - grad)
        theta = theta + step if accepted else theta
        assert np.linalg.norm(fast.theta.numpy() - theta) <= 1e-6 * np.linalg.norm(theta), k
        assert info.reductions == (1 if (solver == "first" if batches > 1 else k > 0) else 2)
        assert math.isnan(info.global_rho) and not info.global_accepted and info.local_iters == 0


@pytest.mark.parametrize("method", ["sgd", "adam", "adamw", "local-sgd"])
@pytest.mark.parametrize("overlap", [False, True])
def test_one_message_a_step_in_which_everything_rides(method: str, overlap: bool) -> None:
    comm = SerialCommunicator()
    fast, _, _ = stepper(settings(method, 3, baseline={"overlap": overlap and method != "local-sgd", "period": 2}), comm=comm)
    for k in range(1, 4):
        info = fast.step(0, 0)
        assert (comm.large, comm.small, info.reductions) == (k, 0, 1)
        assert math.isnan(info.rho) and math.isnan(info.radius) and math.isnan(info.loss_new) and not info.global_accepted


@pytest.mark.parametrize("method", ["sgd", "adam", "local-sgd"])
@pytest.mark.parametrize("gradient", [False, True])
def test_steps_that_are_not_finite_are_not_made_and_end_the_run_in_time(method: str, gradient: bool) -> None:
    config = settings(method, 2, baseline={"period": 2}, stop={"nonfinite": 3})
    fast, objective, _ = stepper(config)
    fast.step(0, 0)
    theta, second = fast.theta.clone(), objective.subdomains[1]
    name = "local" if method == "local-sgd" else "owned"
    honest = getattr(second, name)

    def spoiled(point: torch.Tensor, grad: torch.Tensor) -> float:
        value = honest(point, grad)
        if gradient:
            grad[3] = math.inf
            return value
        return math.nan

    setattr(second, name, spoiled)
    infos = [fast.step(0, 0) for _ in range(2)]
    assert all(not info.accepted and info.status is Status.RUNNING for info in infos) and torch.equal(fast.theta, theta)
    setattr(second, name, honest)
    assert fast.step(0, 0).accepted and not torch.equal(fast.theta, theta) and bool(torch.isfinite(fast.theta).all())
    setattr(second, name, spoiled)
    assert [fast.step(0, 0).status for _ in range(3)] == [Status.RUNNING, Status.RUNNING, Status.NONFINITE]


def test_small_gradients_end_the_run_without_a_step() -> None:
    fast, _, _ = stepper(settings("sgd", stop={"grad_norm": 1e3}))
    theta = fast.theta.clone()
    info = fast.step(0, 0)
    assert info.status is Status.GRADIENT and not info.accepted and torch.equal(theta, fast.theta)


@pytest.mark.parametrize(("batch", "decay", "status"), [(0, 0.0, Status.STATIONARY), (0, 0.1, Status.RUNNING), (20, 0.0, Status.RUNNING)])
def test_a_zero_gradient_is_the_end_only_of_a_full_batch_without_weight_decay(batch: int, decay: float, status: Status) -> None:
    fast, objective, _ = stepper(settings("sgd", 1, baseline={"weight_decay": decay}), batch=batch)
    objective.subdomains[0].owned = lambda theta, grad: float(grad.zero_()[0])  # type: ignore[assignment]
    assert fast.step(0, 0).status is status


@pytest.mark.parametrize("subdomains", [1, 3])
def test_overlap_changes_no_bit(subdomains: int) -> None:
    thetas = []
    for keys in ({}, {"overlap": True, "bucket": 1}, {"overlap": True, "bucket": 10**6}):
        fast, _, _ = stepper(settings("sgd", subdomains, baseline=keys), dtype=torch.float32)
        for k in range(6):
            fast.step(k // 3, k % 3)
        thetas.append(fast.theta)
    assert all(torch.equal(theta, thetas[0]) for theta in thetas)


def test_schedules_by_hand() -> None:
    def rates(at: list[float], per_iteration: int = 1, **stop: int) -> list[float]:
        config = preset("default", "sgd", baseline={"lr": 2.0, "schedule": "cosine", "lr_end": 0.1}, stop={"epochs": 0, **stop})
        return [Schedule(config, 5, per_iteration)(e) for e in at]

    half = 2.0 * (0.1 + 0.9 * 0.5)
    quarter = 2.0 * (0.1 + 0.9 * 0.5 * (1 + math.sqrt(0.5)))
    assert rates([0, 2, 4, 8, 9], epochs=8) == pytest.approx([2.0, quarter, half, 0.2, 0.2])
    assert rates([2], iterations=20) == pytest.approx([half])  # 20 minibatches are 4 epochs
    assert rates([4], iterations=20, epochs=8) == pytest.approx([0.2])
    assert rates([2], iterations=10, per_iteration=2) == pytest.approx([half])
    step = Schedule(preset("default", "sgd", baseline={"lr": 1.0, "schedule": "step", "step": 3, "decay": 0.5}), 5)
    assert [step(e) for e in (0, 2.99, 3, 6.5)] == [1.0, 1.0, 0.5, 0.25]
    assert Schedule(Config(), 5)(7.3) == BaselineConfig().lr


def test_every_method_has_its_stepper() -> None:
    built = {method: stepper(settings(method))[0] for method in METHODS}
    assert isinstance(built["apts"], Averaged)  # its result is the mean of its iterates
    kinds = {method: type(made._inner if isinstance(made, Averaged) else made).__name__ for method, made in built.items()}
    per_step = dict.fromkeys(("sgd", "adam", "adamw"), "AllReduce")
    assert kinds == {"apts": APTS.__name__, "local-sgd": "LocalSGD", "trust-region": "GlobalTrustRegion", **per_step}


def test_outer_iterations_of_an_epoch() -> None:
    config = settings("local-sgd", baseline={"period": 4})
    assert [outer_per_epoch(config, batches) for batches in (1, 4, 5, 8)] == [1, 1, 2, 2]
    assert [list(used_minibatches(config, 5, batch)) for batch in (0, 1)] == [[0, 1, 2, 3], [4]]
    other = settings("sgd", baseline={"period": 4})
    assert outer_per_epoch(other, 5) == 5 and list(used_minibatches(other, 5, 3)) == [3]


@pytest.mark.parametrize(("method", "keys", "batches", "device", "words"), [
    ("sgd", {"overlap": True}, 5, "cuda", "baseline.overlap works on CPU tensors alone, the device is cuda"),
    ("local-sgd", {"period": 6}, 5, "cpu", "baseline.period = 6 is more than the 5 minibatches of an epoch"),
])  # fmt: skip
def test_what_a_method_cannot_do_is_refused(method: str, keys: dict[str, int], batches: int, device: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check_method(settings(method, baseline=keys), batches, torch.device(device))
    check_method(settings(method, baseline=keys), 1 if method == "local-sgd" else batches, torch.device("cpu"))


@pytest.mark.parametrize(("build", "words"), [
    (lambda: BaselineConfig(lr=0), "baseline.lr must be positive and finite, got 0"),
    (lambda: BaselineConfig(lr=math.nan), "baseline.lr must be positive"),
    (lambda: BaselineConfig(lr=math.inf), "baseline.lr must be positive"),
    (lambda: BaselineConfig(momentum=1.0), r"baseline.momentum must be in \[0, 1\), got 1"),
    (lambda: BaselineConfig(nesterov=True, momentum=0), "baseline.nesterov needs baseline.momentum above 0"),
    (lambda: BaselineConfig(weight_decay=-1), r"baseline.weight_decay must be in \[0, inf\), got -1"),
    (lambda: BaselineConfig(lr_end=2), "baseline.lr_end must be in"),
    (lambda: BaselineConfig(step=0), "baseline.step must be in"),
    (lambda: BaselineConfig(decay=0), r"baseline.decay must be in \(0, 1\], got 0"),
    (lambda: BaselineConfig(period=0), "baseline.period must be in"),
    (lambda: BaselineConfig(bucket=0), "baseline.bucket must be in"),
    (lambda: preset("default", "trust-region", global_step={"solver": "none"}),
     "method trust-region needs global_step.solver lsr1 or first, got none"),
    (lambda: preset("default", "local-sgd", baseline={"overlap": True}), "baseline.overlap needs method sgd, adam or adamw, got local-sgd"),
    (lambda: preset("default", "sgd", baseline={"schedule": "cosine"}, stop={"epochs": 0, "wall_time": 9.0}), "cosine needs stop.epochs"),
    (lambda: preset("default", "sdg"), "method must be one of apts, sgd, adam, adamw, local-sgd, trust-region, got 'sdg'"),
])  # fmt: skip
def test_settings_out_of_bounds(build: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build()  # type: ignore[operator]
