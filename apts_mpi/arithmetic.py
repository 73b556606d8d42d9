"""How much arithmetic a run did, and how fast: counted once for one sample, multiplied afterwards."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from apts_mpi.timing import EVALUATE, LOCAL_SOLVE, RUN, RegionTime


@dataclass(frozen=True)
class Arithmetic:
    """Floating-point operations of matrix products and convolutions; element-wise work and the solver are not counted."""

    gradient: float = math.nan  # of one sample's loss and its gradient
    value: float = math.nan  # of its loss alone
    peak: float = math.nan  # per second of a rank, in a matrix product; nan if it was not measured

    def total(self, gradient_samples: float, value_samples: float) -> float:
        """Of so many samples."""
        return self.gradient * gradient_samples + self.value * value_samples

    def text(self, total: float, last: float, ranks: int, seconds: float, times: Sequence[RegionTime]) -> str:
        """The rates of a rank while it evaluates and over the run; empty if they are not known.

        ``total`` operations took ``seconds``; ``last`` of them were done since the last start, of which ``times`` are.
        """
        evaluating = sum(line.mean for line in times if line.phase == RUN and line.region in (EVALUATE, LOCAL_SOLVE))
        if not (last > 0 and seconds > 0 and evaluating > 0):
            return ""
        text = f"{last / ranks / evaluating * 1e-9:.3g} GFLOP/s per rank while evaluating"
        if math.isfinite(self.peak):
            text += f" ({100 * last / ranks / evaluating / self.peak:.0f} % of the measured {self.peak * 1e-9:.3g})"
        return f"{text}, {total / ranks / seconds * 1e-9:.3g} over the run"
