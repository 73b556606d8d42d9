"""Random L-SR1 memories and gradients for the property tests, and how many of them."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

Array = NDArray[np.float64]


def cases(share: float) -> settings:
    """Settings for a share of the 2,000 property cases of a normal run; APTS_NIGHTLY=1: of 100,000."""
    total = 100_000 if os.environ.get("APTS_NIGHTLY") == "1" else 2_000
    return settings(
        max_examples=max(1, round(share * total)), deadline=None, database=None, derandomize=total == 2_000,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.large_base_example],
    )  # fmt: skip


@dataclass(frozen=True)
class Case:
    """k pairs as rows of (k, n), gamma, a gradient and a radius."""

    steps: Array
    changes: Array
    gamma: float
    grad: Array
    radius: float


PAIRS = ("random", "quadratic", "indefinite", "duplicate", "collinear", "nearly", "zero_step", "zero_change", "eigen")
GRADS = ("random", "in_span", "off_leftmost", "zero", "axis")


@st.composite
def memories(draw: st.DrawFn, smallest: int = 1) -> Case:
    """A memory of one kind, on any scale from 1e-6 to 1e6."""
    n = draw(st.integers(smallest, 12))
    k = draw(st.integers(0, n + 2))
    kind = draw(st.sampled_from(PAIRS))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    steps = rng.standard_normal((k, n)) * 10.0 ** rng.uniform(-1, 1, (k, 1))
    a = rng.standard_normal((n, n))
    hessian = a @ a.T / n + 0.1 * np.eye(n) if kind == "quadratic" else a + a.T
    changes = steps @ hessian + (0.0 if kind in ("quadratic", "indefinite") else 0.3) * rng.standard_normal((k, n))
    _spoil(kind, steps, changes, rng)
    gamma = draw(st.sampled_from((1.0, 0.1, 30.0, 0.0, -1.0)))
    grad = _gradient(draw(st.sampled_from(GRADS)), changes - gamma * steps, hessian, rng)
    unit, length = 10.0 ** draw(st.integers(-6, 6)), 10.0 ** draw(st.integers(-6, 6))
    radius = length * 10.0 ** draw(st.floats(-3, 3))
    return Case(steps * length, changes * unit / length, gamma * unit / length**2, grad * unit / length, radius)


def _spoil(kind: str, steps: Array, changes: Array, rng: np.random.Generator) -> None:
    """Make some pairs of (k, n) rows collinear, equal or zero, in place."""
    for i in range(1, len(steps)):
        if kind == "duplicate" and rng.random() < 0.7:
            steps[i], changes[i] = steps[i - 1], changes[i - 1]
        elif kind in ("collinear", "nearly") and rng.random() < 0.7:
            factor, off = rng.uniform(-2, 2), 0.0 if kind == "collinear" else 10.0 ** rng.uniform(-12, -2)
            steps[i] = factor * steps[i - 1] + off * rng.standard_normal(steps.shape[1])
            changes[i] = factor * changes[i - 1] + off * rng.standard_normal(steps.shape[1])
        elif kind == "zero_step" and rng.random() < 0.5:
            steps[i] = 0
        elif kind == "zero_change" and rng.random() < 0.5:
            changes[i] = 0
        elif kind == "eigen":
            changes[i] = rng.choice([-2.0, 1.0, 3.0]) * steps[i]


def _gradient(kind: str, psi: Array, hessian: Array, rng: np.random.Generator) -> Array:
    """A gradient; ``psi`` has the vectors y - gamma s as rows."""
    n = psi.shape[1]
    if kind == "zero":
        return np.zeros(n)
    if kind == "axis":
        return np.eye(n)[rng.integers(n)] * 10.0
    if kind == "in_span" and len(psi):
        return rng.standard_normal(len(psi)) @ psi
    grad = rng.standard_normal(n) * 10.0 ** rng.uniform(-2, 2)
    if kind == "off_leftmost":
        left = np.linalg.eigh(hessian)[1][:, 0]
        grad -= left * (left @ grad)
    return grad
