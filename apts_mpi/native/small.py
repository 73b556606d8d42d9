"""The compiled small matrices of an L-SR1 iteration, float64 on the host; their twins in numpy are where they are asked for.

``solver/compact.py`` and ``solver/obs.py`` say what is computed and call these where ``compiled`` says so. Gram matrices are (k, k)
and of any strides; nothing is raised but TypeError and ValueError for arrays that are not float64 or do not fit each other.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from apts_mpi.native.extension import compiled_module, extension

Array = NDArray[np.float64]


def compiled() -> bool:
    """Are the functions below there? A module compiled before they were written lacks them."""
    return hasattr(extension(), "sr1")


def sr1(ss: Array, sy: Array, yy: Array, gamma: float, noise: float) -> tuple[NDArray[np.intp], Array, Array]:
    """``used``, ``p`` and ``delta`` of ``compact.sr1``."""
    found: tuple[NDArray[np.intp], Array, Array] = compiled_module().sr1(ss, sy, yy, gamma, noise)
    return found


def spectrum(
    ss: Array, sy: Array, yy: Array, gamma: float, used: NDArray[np.intp], p: Array, delta: Array, noise: float, cut: float, n_params: int
) -> tuple[Array, Array, float]:
    """``eigenvalues``, ``basis`` and ``noise`` of ``compact.spectrum``."""
    found: tuple[Array, Array, float] = compiled_module().spectrum(ss, sy, yy, gamma, used.tolist(), p, delta, noise, cut, n_params)
    return found


def minimise(
    ss: Array, sy: Array, yy: Array, gamma: float, eigenvalues: Array, basis: Array, noise: float,
    sg: Array, yg: Array, gg: float, n_params: int, radius: float,
) -> tuple[tuple[Array, float, float, float, float, bool, bool, bool, int], tuple[float, Array, Array]]:  # fmt: skip
    """The fields of a ``subproblem.Solution`` and of an ``obs.Combination`` as ``obs.minimise`` finds them."""
    found: tuple[tuple[Array, float, float, float, float, bool, bool, bool, int], tuple[float, Array, Array]]
    found = compiled_module().minimise(ss, sy, yy, gamma, eigenvalues, basis, noise, sg, yg, gg, n_params, radius)
    return found
