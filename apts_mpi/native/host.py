"""The compiled kernels of host memory: same names and arguments as the torch twins, on torch's number of threads.

``square`` and ``advance_`` are the twins: a kernel gained nothing over torch.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, get_num_threads

from apts_mpi.native.extension import compiled_module
from apts_mpi.native.twins import advance_, square

__all__ = ["advance_", "blend_", "combine_", "observe_", "reach_", "square"]


def observe_(memory: Tensor, used: int, spare: int, grad: Tensor, grad_new: Tensor) -> list[float]:
    """See ``kernels.observe_``."""
    found: list[float] = compiled_module().observe_(memory, used, spare, grad, grad_new, get_num_threads())
    return found


def combine_(memory: Tensor, chosen: Sequence[int], weights: Sequence[float], factor: float, grad: Tensor, out: Tensor) -> float:
    """See ``kernels.combine_``."""
    return float(compiled_module().combine_(memory, list(chosen), list(weights), factor, grad, out, get_num_threads()))


def reach_(step: Tensor, moved: Tensor, origin: Tensor, correction: Tensor, reached: Tensor, trial: Tensor) -> list[float]:
    """See ``kernels.reach_``."""
    found: list[float] = compiled_module().reach_(step, moved, origin, correction, reached, trial, get_num_threads())
    return found


def blend_(momentum: Tensor, fresh: Tensor, kept: Tensor, grad: Tensor, beta: float) -> float:
    """See ``kernels.blend_``."""
    return float(compiled_module().blend_(momentum, fresh, kept, grad, beta, get_num_threads()))
