"""The compact L-SR1 matrix B = gamma I + Psi M Psi' and its eigenvalues, from Gram matrices alone.

Psi = Y' - gamma S' has the vectors y_i - gamma s_i as columns, i = 0..k-1 from the oldest pair. It is
never formed: only S's, S'y, Y'y (k, k), in float64 on the host, are needed. What is written here in numpy is the twin of
``native.small``, which serves where it is compiled. Source: Brust, Erway, Marcia 2017.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from apts_mpi.native import small

Array = NDArray[np.float64]

ADMISSION = 1e-8  # a pair counts if |s'(y - Bs)| >= ADMISSION ||s|| ||y - Bs||


def product_noise(dtype: torch.dtype) -> float:
    """Relative accuracy of inner products in blocks of 8,192 and of the float64 arithmetic on them.

    Measured on two kinds of CPU with vectors of one sign, the worst: 6 eps of float32, 13 eps of float64; on a GPU, whose blocks are
    larger, nothing has been measured.
    """
    return 8 * torch.finfo(dtype).eps + 16 * float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class Gram:
    """Inner products of k pairs, oldest first: ss[i, j] = s_i's_j, sy[i, j] = s_i'y_j, yy[i, j] = y_i'y_j."""

    ss: Array
    sy: Array
    yy: Array


@dataclass(frozen=True)
class Compact:
    """B = gamma I + sum_j u_j u_j' / delta_j with u_j = Psi p_j, the SR1 updates that were not skipped."""

    gamma: float
    used: NDArray[np.intp]  # (r,) pairs that count
    p: Array  # (k, r)
    delta: Array  # (r,)

    def middle(self) -> Array:
        """M = sum_j p_j p_j' / delta_j, (k, k); rows and columns of skipped pairs are zero."""
        return (self.p / self.delta) @ self.p.T


@dataclass(frozen=True)
class Spectrum:
    """Orthonormal eigenvectors of B within the span of Psi, Q = Psi basis; B = gamma off that span."""

    gamma: float
    eigenvalues: Array  # (r,)
    basis: Array  # (k, r)
    noise: float  # relative accuracy of ||Q'v||^2


@np.errstate(all="ignore")
def sr1(gram: Gram, gamma: float, noise: float) -> Compact:
    """The SR1 recursion in coefficients of Psi, which is an LDL' factorisation of M^-1 = D + L + L' - gamma S'S:

        p_j = e_j - sum_{i<j} p_i (u_i's_j) / delta_i,   delta_j = u_j's_j,   u_j = y_j - B_j s_j.

    Pair j is skipped if |delta_j| < 1e-8 ||s_j|| ||u_j||, or if delta_j is lost in the relative error
    ``noise`` of the inner products. O(k^3).
    """
    if small.compiled():
        return Compact(gamma, *small.sr1(gram.ss, gram.sy, gram.yy, gamma, noise))
    k = len(gram.ss)
    cross = gram.sy.T - gamma * gram.ss  # psi_i's_j
    inner = psi_gram(gram, gamma)
    s_norm, size = np.sqrt(np.diag(gram.ss)), magnitude(gram, gamma)
    p, delta = np.zeros((k, k)), np.zeros(k)
    used: list[int] = []
    for j in range(k):
        column = -p[:, used] @ ((p[:, used].T @ cross[:, j]) / delta[used])
        column[j] += 1.0
        pivot = float(column @ cross[:, j])
        u_norm = math.sqrt(max(float(column @ inner @ column), 0.0)) if math.isfinite(pivot) else math.inf
        floor = s_norm[j] * max(ADMISSION * u_norm, noise * float(np.abs(column) @ size))
        if math.isfinite(pivot) and abs(pivot) > 0 and abs(pivot) >= floor:
            p[:, j], delta[j] = column, pivot
            used.append(j)
    return Compact(gamma, np.array(used, dtype=np.intp), p[:, used], delta[used])


@np.errstate(all="ignore")
def spectrum(gram: Gram, compact: Compact, noise: float, cut: float, n_params: int) -> Spectrum:
    """Eigenvalues and eigenvectors of B in the span of Psi.

    Psi'Psi is scaled by the sizes ||y_i|| + |gamma| ||s_i||, so that all its entries have an error of about
    ``noise``; eigenvectors of it below ``cut`` times the largest eigenvalue, and beyond ``n_params``, are dropped. O(k^3).
    """
    if small.compiled():
        parts = (gram.ss, gram.sy, gram.yy, compact.gamma, compact.used, compact.p, compact.delta)
        return Spectrum(compact.gamma, *small.spectrum(*parts, noise, cut, n_params))
    k, used = len(gram.ss), compact.used
    empty = Spectrum(compact.gamma, np.zeros(0), np.zeros((k, 0)), noise)
    if len(used) == 0:
        return empty
    size = magnitude(gram, compact.gamma)[used]
    scaled = psi_gram(gram, compact.gamma)[np.ix_(used, used)] / np.outer(size, size)
    middle = compact.middle()[np.ix_(used, used)] * np.outer(size, size)
    if not (np.isfinite(scaled).all() and np.isfinite(middle).all()):
        return empty
    try:
        w, v = np.linalg.eigh(scaled)
        keep = np.flatnonzero(w > cut * max(w[-1], 0.0))[-n_params:]
        root = np.sqrt(w[keep])
        inside = (v[:, keep] * root).T @ middle @ (v[:, keep] * root)  # Q'Psi M Psi'Q
        shift, u = np.linalg.eigh(inside)
    except np.linalg.LinAlgError:  # no convergence: fall back to gamma I
        return empty
    if len(keep) == 0 or not np.isfinite(shift).all():
        return empty
    basis = np.zeros((k, len(keep)))
    basis[used] = ((v[:, keep] / root) @ u) / size[:, None]
    return Spectrum(compact.gamma, compact.gamma + shift, basis, noise * (1 + len(keep) * w[-1] / w[keep[0]]))


def psi_gram(gram: Gram, gamma: float) -> Array:
    """Psi'Psi = Y'Y - gamma (S'Y + Y'S) + gamma^2 S'S, (k, k)."""
    return gram.yy - gamma * (gram.sy + gram.sy.T) + gamma * gamma * gram.ss


def magnitude(gram: Gram, gamma: float) -> Array:
    """||y_i|| + |gamma| ||s_i||, (k,): the scale of y_i - gamma s_i; 1 where both are zero."""
    size: Array = np.sqrt(np.diag(gram.yy)) + abs(gamma) * np.sqrt(np.diag(gram.ss))
    return np.where(size == 0, 1.0, size)
