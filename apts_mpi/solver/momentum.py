"""Momentum of the outer iteration: what cancels in the mean of the steps was noise, so as much is kept of the last summed step."""

from __future__ import annotations

import math

from torch import Tensor

from apts_mpi.solver.vectors import dot64, number, to_host


class Momentum:
    """The last summed step s~_{k-1}, (n,), and the share mu of it that goes into the next one.

    s~ = s + mu s~_{k-1},  mu = 1 - ||s|| / sum_i w_i ||s_i||,  s = sum_i w_i s_i, shortened to Delta as (5) asks. Steps that agree have
    mu = 0; the more subdomains and the fewer samples in each, the more cancels. ``like`` gives n, dtype and device. Every rank calls
    alike and nothing is sent. Not ``asked``: s~ = s. After Polyak's heavy ball, here between communications as in slow momentum
    (Wang et al. 2020), but with a weight that it finds by itself.
    """

    def __init__(self, like: Tensor, asked: bool) -> None:
        self._last = like.new_zeros(like.shape) if asked else None
        self._square = self._next = 0.0  # ||s~_{k-1}||^2; that of s~

    def add_(self, step: Tensor, grad: Tensor, length: float, radius: float) -> tuple[float, float]:
        """Turn s in ``step`` into s~; <g, s~> and ||s~||^2. ``length``: sum_i w_i ||s_i||.

        s~ stays s where it would fall less than half as steeply along g: the last step leads elsewhere.
        """
        slope, self._next = self._add_(step, grad, length, radius)
        return slope, self._next

    def _add_(self, step: Tensor, grad: Tensor, length: float, radius: float) -> tuple[float, float]:
        last = self._last if self._square else None
        pairs = [(grad, step), (step, step), *([(grad, last), (step, last)] if last is not None else [])]
        slope, square, *others = to_host([dot64(a, b) for a, b in pairs])
        if last is None or not 0 <= square < length * length:
            return slope, square
        mu = 1 - math.sqrt(square) / length
        new_slope, new_square = slope + mu * others[0], square + mu * (2 * others[1] + mu * self._square)
        if not (new_slope <= slope / 2 < 0 < new_square < math.inf):
            return slope, square
        scale = min(1.0, radius / math.sqrt(new_square))
        if scale < 1:
            step.mul_(scale)
        step.add_(last, alpha=scale * mu)
        return scale * new_slope, scale * scale * new_square

    def keep(self, step: Tensor, accepted: bool) -> None:
        """Remember the s~ of ``add_``; nothing, if it was refused."""
        if self._last is not None:
            self._last.copy_(step) if accepted else self._last.zero_()
            self._square = self._next if accepted else 0.0

    def state(self) -> dict[str, Tensor]:
        """The last step, live, and its square; empty if nothing is asked."""
        return {"last": self._last, "square": number(self._square)} if self._last is not None else {}

    def restore_(self, state: dict[str, Tensor]) -> None:
        """Go on from ``state``; from nothing where it is empty, as that of a run without momentum."""
        if self._last is not None:
            self._last.copy_(state["last"]) if state else self._last.zero_()
            self._square = float(state["square"]) if state else 0.0
