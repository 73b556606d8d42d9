"""Is the sum over the ranks the sum of what they sent? A checksum of every vector travels in exact lanes behind it.

Rank p puts c_p, the sum of its n entries x_p, and b_p >= ||x_p||_1 into two lanes. Lanes are added exactly, in any order, so
after the sum every rank knows C = sum c_p and B = sum b_p, adds the entries of the vector s that it got, and compares:

    |sum_i s_i - C| <= T = 1.01 B ((P - 1) u + 2 (7 u + n 2^-53)) + P 2^-119,      u = 2^-24 (float32) or 2^-53 (float64)

Nothing that computes as IEEE 754 says can exceed T. Each entry of s is P - 1 additions in some order and has an error of at
most g sum_p |x_p,i|, g = (P - 1) u / (1 - (P - 1) u) (Higham, Accuracy and Stability, 4.2). A checksum adds 8 pieces of the
vector in its own precision, at most 7 u off, and n / 8 sums in float64, at most n 2^-53 off, relative to the 1-norm; once before
and once after. A lane rounds to 2^-120. 1.01 covers the products of these terms for up to 65,793 ranks, which is a lane's most.
b_p = (n (1.07 x'x + n tiny))^1/2 by Cauchy and Schwarz: x'x in blocks of 2^20 is at most 1/16 too small, and a square that
underflows at most tiny.

Found are: a contribution lost or taken twice, also of a message without vector (each lane counts its terms); a wrong sign or
exponent of an entry of about the size 2 T or more, which for n = 500,000 is that of a mean entry, and any that becomes large, nan or
inf. Not found are: wrong low bits of an entry, errors that cancel each other, wrong bits in other scalars and flags, and
anything where norms pass 2^63, as then nan and inf are a matter of numerics, of which the solver takes care.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from apts_mpi.contracts import CHECKS, Communicator, Message
from apts_mpi.parallel.handshake import ReductionError
from apts_mpi.parallel.serial import checked
from apts_mpi.parallel.wrapper import WrappedCommunicator

if TYPE_CHECKING:
    from torch import Tensor, device, dtype

    from apts_mpi.parallel.message import FlatMessage

PIECES = 8
BLOCK = 2**20
CHECKSUM, BOUND = CHECKS


def total(vector: Tensor) -> Tensor:
    """The sum of the entries, 0-d float64 on the vector's device: several times faster than adding all of them in float64."""
    import torch

    even = vector.numel() // PIECES * PIECES
    pieces = vector[:even].view(PIECES, -1).sum(0)
    return pieces.sum(dtype=torch.float64) + vector[even:].sum(dtype=torch.float64)


def squares(vector: Tensor) -> Tensor:
    """x'x, 0-d float64 on the vector's device, at most 1/16 too small."""
    import torch

    return torch.stack([torch.dot(block, block) for block in torch.split(vector, BLOCK)]).sum(dtype=torch.float64)


def bound(length: int, square: float, tiny: float) -> float:
    """At least the 1-norm of ``length`` numbers whose squares add to ``square``."""
    return math.sqrt(length * (1.07 * square + length * tiny))


def tolerance(length: int, ranks: int, eps: float, norms: float) -> float:
    """T of this page for vectors whose 1-norms add to ``norms`` at most; ``eps`` = 2 u."""
    unit = eps / 2
    return 1.01 * norms * ((ranks - 1) * unit + 2 * ((PIECES - 1) * unit + length * 2.0**-53)) + ranks * 2.0**-119


class CheckedCommunicator(WrappedCommunicator):
    """``contracts.Communicator`` that checks every sum; ReductionError on the ranks that see a wrong one, which may be one alone."""

    def __init__(self, inner: Communicator) -> None:
        super().__init__(inner)
        self._started = [0.0, 0.0]  # checksum and squares of the parts that were started

    def plan(self, n_params: int, dtype: dtype, device: device, scalars: Sequence[str]) -> Message:
        """Allocate a message with two lanes more."""
        return self.inner.plan(n_params, dtype, device, [*scalars, *CHECKS])

    def sum_(self, message: Message, vector: bool = True) -> None:
        """The sum, checked."""
        flat = checked(message)
        self._put(flat, _measured(flat.vector) if vector else [0.0, 0.0])
        self.inner.sum_(message, vector)
        self._check(flat, vector)

    def start_sum(self, message: Message, start: int, stop: int) -> None:
        """Begin to sum a part, whose checksum is taken now."""
        part = _measured(checked(message).vector[start:stop])
        self._started = [sum(pair) for pair in zip(self._started, part, strict=True)]
        self.inner.start_sum(message, start, stop)

    def finish_sum(self, message: Message) -> None:
        """Wait for all, checked as one message."""
        flat = checked(message)
        self._put(flat, self._started)
        self._started = [0.0, 0.0]
        self.inner.finish_sum(message)
        self._check(flat, True)

    def _put(self, flat: FlatMessage, measured: Sequence[float]) -> None:
        import torch

        flat.put(CHECKSUM, [measured[0]])
        flat.put(BOUND, [bound(flat.n_params, measured[1], torch.finfo(flat.vector.dtype).tiny)])

    def _check(self, flat: FlatMessage, vector: bool) -> None:
        import torch

        terms = flat.terms(CHECKSUM), flat.terms(BOUND)
        if terms != (self.size, self.size):
            raise ReductionError(self._words(flat, f"it holds {terms[0]} and {terms[1]} contributions instead of {self.size}"))
        sent, norms = flat.get(CHECKSUM), flat.get(BOUND)
        if not vector or not (math.isfinite(sent) and math.isfinite(norms)):
            return
        got = float(total(flat.vector))
        allowed = tolerance(flat.n_params, self.size, torch.finfo(flat.vector.dtype).eps, norms)
        if not abs(got - sent) <= allowed:  # true for nan
            sums = f"its entries add to {got:.17g}, those that the ranks sent to {sent:.17g}"
            raise ReductionError(self._words(flat, f"{sums}; rounding explains {allowed:.3g}"))

    def _words(self, flat: FlatMessage, found: str) -> str:
        kind = f"{flat.n_params} {str(flat.vector.dtype).removeprefix('torch.')}"
        what = f"a sum over {self.size} ranks by {self.library} is wrong on rank {self.rank} on {self.host} (message: {kind})"
        advice = "go on from the last checkpoint; if it happens again on this host leave the host out, on others set comm.reduction to tree"
        return f"{what}: {found}. A memory, the network or the MPI library is broken: {advice}"


def _measured(vector: Tensor) -> list[float]:
    """Checksum and squares of one vector or part, brought to the host together."""
    import torch

    return [float(value) for value in torch.stack([total(vector), squares(vector)]).tolist()]
