"""Algorithm 1 with dense matrices and lists in NumPy float64: the slow twin of solver/ and problem/objective.py.

One process plays all subdomains. Nothing is shared with the package but the rules of numerics and config.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from dense_sr1 import DenseLSR1, recursion
from dense_trust_region import solve_dense
from numpy.typing import NDArray

Array = NDArray[np.float64]
Cut = list[tuple[list[int], list[int]]]  # per subdomain: owned and borrowed samples


@dataclass
class Network:
    """tanh network with one hidden layer and softmax cross-entropy; theta in torch's order of parameters."""

    inputs: Array  # (p, d)
    labels: NDArray[np.int64]
    hidden: int
    classes: int

    @property
    def n(self) -> int:
        d = self.inputs.shape[1]
        return self.hidden * (d + 1) + self.classes * (self.hidden + 1)

    def sums(self, theta: Array, rows: list[int]) -> tuple[float, Array]:
        """Sum of the losses of ``rows`` and its gradient."""
        d, h, c = self.inputs.shape[1], self.hidden, self.classes
        w1, b1 = theta[: h * d].reshape(h, d), theta[h * d : h * d + h]
        rest = theta[h * d + h :]
        w2, b2 = rest[: c * h].reshape(c, h), rest[c * h :]
        loss, grad = 0.0, np.zeros_like(theta)
        for row in rows:
            x, label = self.inputs[row], self.labels[row]
            a = np.tanh(w1 @ x + b1)
            z = w2 @ a + b2
            p = np.exp(z - z.max())
            p /= p.sum()
            loss -= np.log(p[label])
            e = p - np.eye(c)[label]
            back = (w2.T @ e) * (1 - a * a)
            grad += np.concatenate([np.outer(back, x).ravel(), back, np.outer(e, a).ravel(), e])
        return loss, grad


class DenseAPTS:
    """One outer iteration per ``step``; config is an apts_mpi.config.Config, read as plain numbers."""

    def __init__(self, network: Network, theta: Array, config, radius_init: float) -> None:
        self.net, self.theta, self.c = network, theta.copy(), config
        self.radius = self.global_radius = radius_init
        self.memory = DenseLSR1(network.n, config.global_step.memory, config.local.gamma)
        self.last = np.zeros_like(theta)  # summed step, zero after a refused one
        self.pairs: list[tuple[Array, Array]] = []  # of the sweep's metric
        self.local_radii: dict[int, float] = {}
        self.rhos: list[float] = []

    def f(self, theta: Array, cut: Cut) -> tuple[float, Array]:
        rows = [row for owned, _ in cut for row in owned]
        loss, grad = self.net.sums(theta, rows)
        return loss / len(rows), grad / len(rows)

    def step(self, cut: Cut, full_batch: bool) -> None:
        total, count, rule = sum(len(owned) for owned, _ in cut), len(cut), self.c.trust_region
        mean = self.c.solver.combine == "mean"
        loss, grad = self.f(self.theta, cut)
        if not self.rhos and self.c.local.solver == "sweep" and mean and self.c.solver.radius == "own":
            self.radius = self._first_radius(cut, loss, grad)
        step, predicted, length = np.zeros_like(self.theta), 0.0, 0.0
        for i, (owned, borrowed) in enumerate(cut):
            weight = len(owned) / total if mean else 1.0
            ball = self.radius if mean else self.radius / count
            smallest = rule.radius_min if mean else rule.radius_min / count
            s, decrease = self._local(i, owned, borrowed, grad, ball, min(smallest, ball))
            step, predicted = step + weight * s, predicted + weight * decrease
            length += weight * np.linalg.norm(s)
        if self.c.local.solver == "sweep" and mean and self.c.solver.momentum and length:
            both = step + (1 - np.linalg.norm(step) / length) * self.last
            step = both * min(1, self.radius / np.linalg.norm(both)) if grad @ both <= grad @ step / 2 < 0 else step
        assert np.linalg.norm(step) <= self.radius * (1 + 1e-6)
        if self.c.local.solver == "sweep":
            predicted = -0.5 * grad @ step
        shared = self.c.solver.radius == "shared"
        new, new_grad = self.f(self.theta + step, cut)
        accepted, rho = self._judge(loss - new, predicted) if length else (False, np.nan)
        if self.c.local.solver == "sweep" and full_batch and self.c.local.memory:
            self.pairs = [*self.pairs, (step, new_grad - grad)][-self.c.local.memory :]
        self.radius = self._next(self.radius, accepted, rho, shared or length >= rule.reached * self.radius)
        self.rhos.append(rho)
        self.last = step if accepted else np.zeros_like(step)
        if accepted:
            self.theta = self.theta + step
        if shared:
            self.global_radius = self.radius
        if self.c.global_step.solver == "none":
            return
        loss, grad = self.f(self.theta, cut)
        s, predicted = self._propose(self.c.global_step.solver, self.memory, grad, self.global_radius)
        new, new_grad = self.f(self.theta + s, cut)
        accepted, rho = self._judge(loss - new, predicted)
        hits = np.linalg.norm(s) >= self.global_radius * (1 - 1e-9)
        self.global_radius = self._next(self.global_radius, accepted, rho, hits)
        assert rule.radius_min <= self.global_radius <= rule.radius_max
        if self.c.global_step.solver == "lsr1":
            self.memory.offer(s, new_grad - grad)
        if accepted:
            self.theta = self.theta + s
        if shared:
            self.radius = self.global_radius

    def _local(self, i: int, owned: list[int], borrowed: list[int], grad: Array, ball: float, smallest: float) -> tuple[Array, float]:
        rows, centre, c = owned + borrowed, self.theta, self.c.local
        if c.solver == "sweep":
            return self._sweep(owned, borrowed, grad, ball), 0.0
        value0, grad0 = (part / len(rows) for part in self.net.sums(centre, rows))
        r = grad - grad0 if self.c.solver.consistent else 0 * grad

        def f(theta: Array) -> tuple[float, Array]:
            value, gradient = (part / len(rows) for part in self.net.sums(theta, rows))
            return value + r @ (theta - centre), gradient + r

        memory = DenseLSR1(self.net.n, c.memory, c.gamma)
        radius = min(self.local_radii.get(i, c.radius_start * ball), ball)
        s, value, g = np.zeros_like(centre), value0, grad0 + r
        for _ in range(c.iters):
            if np.linalg.norm(s) >= ball * (1 - 1e-3):
                break
            limit = min(radius, ball - np.linalg.norm(s))
            d, predicted = self._propose(c.solver, memory, g, limit)
            new, new_g = f(centre + s + d)
            memory.offer(d, new_g - g)
            accepted, rho = self._judge(value - new, predicted)
            hits = np.linalg.norm(d) >= limit * (1 - 1e-9)
            if accepted:
                s, value, g = s + d, new, new_g
            rule = self.c.trust_region
            if not accepted or rho < rule.eta1:
                radius = max((radius if accepted else limit) * rule.shrink, smallest)
            elif rho > rule.eta2 and hits and limit >= radius * (1 - 1e-3):
                radius = min(radius * rule.grow, ball)
        if c.carry:
            self.local_radii[i] = radius
        return s, value0 - value

    def _metric(self) -> Array:
        """min(1, gamma |B|^-1)^(1/2) by its eigenvalues."""
        curvatures = [s @ y / (s @ s) for s, y in self.pairs if s @ y > 0]
        if not curvatures:
            return np.eye(self.net.n)
        gamma = 0.9 * min(curvatures)
        b, _ = recursion(np.array([s for s, _ in self.pairs]), np.array([y for _, y in self.pairs]), gamma)
        size, vectors = np.linalg.eigh(b)
        return vectors @ np.diag(np.sqrt(np.minimum(1.0, gamma / np.maximum(abs(size), 1e-300)))) @ vectors.T

    def _sweep(self, owned: list[int], borrowed: list[int], grad: Array, ball: float) -> Array:
        c = self.c.local
        chunks = min(min(max(round(len(owned) / c.chunk), c.chunks_min), c.chunks_max), len(owned))
        pieces = [owned[j * len(owned) // chunks : (j + 1) * len(owned) // chunks] for j in range(chunks)]
        pieces += [borrowed] if borrowed else []
        metric = self._metric()
        nu, theta, m = c.passes * len(pieces), self.theta, np.zeros_like(self.theta)
        for j in range(nu):
            rows = pieces[j % len(pieces)]
            change = (self.net.sums(theta, rows)[1] - self.net.sums(self.theta, rows)[1]) / len(rows)
            m = c.momentum * m + (1 - c.momentum) * (grad + change)
            d = metric @ m
            theta = theta - ball / nu * d / np.linalg.norm(d)
        return theta - self.theta

    def _propose(self, solver: str, memory: DenseLSR1, grad: Array, radius: float) -> tuple[Array, float]:
        if solver == "first":
            norm = np.linalg.norm(grad)
            return -radius / norm * grad, radius * norm
        b = memory.hessian()
        s = solve_dense(b, grad, radius)
        return s, -float(grad @ s + 0.5 * s @ b @ s)

    def _judge(self, actual: float, predicted: float) -> tuple[bool, float]:
        rho = actual / predicted if predicted > 0 else np.nan
        rule = self.c.trust_region
        return bool(rho >= (rule.eta0 if rule.eta0 > 0 else rule.eta1)), rho

    def _first_radius(self, cut: Cut, loss: float, grad: Array) -> float:
        """All powers of two in turn, up to the first along the gradient that is not good."""
        rule, norm = self.c.trust_region, np.linalg.norm(grad)
        least, most = math.ceil(math.log2(rule.radius_min)), math.floor(math.log2(rule.radius_max))
        found = 2.0**least
        for exponent in range(least, most + 1):
            length = 2.0**exponent
            if not loss - self.f(self.theta - length / norm * grad, cut)[0] > rule.eta1 * length * norm / 2:
                break
            found = length
        return min(max(found, rule.radius_min), rule.radius_max)

    def _next(self, radius: float, accepted: bool, rho: float, reached: bool) -> float:
        rule = self.c.trust_region
        if not accepted or rho < rule.eta1:
            radius *= rule.shrink
        elif rho > rule.eta2 and reached:
            radius *= rule.grow
        return min(max(radius, rule.radius_min), rule.radius_max)
