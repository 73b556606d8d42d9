"""The radius to begin with, from a few values of the loss along the gradient."""

from __future__ import annotations

import math
from collections.abc import Callable

from apts_mpi.config import TrustRegionConfig

STRIDE = 3  # powers of two between values, until they lie on both sides of the answer


def first_radius(decrease: Callable[[float], float], grad_norm: float, rule: TrustRegionConfig) -> float:
    """The largest power of two t for which f(theta) - f(theta - t g/||g||) > eta1 t ||g|| / 2: beyond it (7) would let the ball shrink.

    ``decrease(t)`` is the left side, ``grad_norm`` ||g|| > 0. Sought from ``radius_init`` up or down, so that its choice decides how
    many values it takes, not what is found, as long as the loss along the line has one such t; within [``radius_min``, ``radius_max``].
    Source: after Sartenaer 1997, who seeks the first radius along the gradient too.
    """

    def good(exponent: int) -> bool:
        length = 2.0**exponent
        return decrease(length) > rule.eta1 * length * grad_norm / 2  # nan is not good

    least, most = math.ceil(math.log2(rule.radius_min)), math.floor(math.log2(rule.radius_max))
    low = high = min(max(round(math.log2(rule.radius_init)), least), most)
    if good(low):
        while low < most and good(high := min(low + STRIDE, most)):
            low = high
    else:
        while high > least and not good(low := max(high - STRIDE, least)):
            high = low
    while high - low > 1:
        middle = low + 1
        low, high = (middle, high) if good(middle) else (low, middle)
    return min(max(2.0**low, rule.radius_min), rule.radius_max)
