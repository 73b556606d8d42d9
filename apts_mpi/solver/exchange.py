"""The solver's only door to the other ranks: pack, sum, count."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from apts_mpi import timing
from apts_mpi.contracts import SCALARS, Communicator, Flag, Message, Objective, Timers, Wishes
from apts_mpi.partition import tree_sum

BLOCK = 65_536  # entries of all subdomains' vectors that are added before the next


class Exchange:
    """One planned message and the sums that go through it; every rank calls ``sum_`` alike.

    ``wishes`` is asked on every rank before a message leaves; what any rank raises, all ranks
    know after that message.
    """

    def __init__(
        self, theta: Tensor, objective: Objective, comm: Communicator, timers: Timers, wishes: Wishes
    ) -> None:
        self.message = comm.plan(theta.numel(), theta.dtype, theta.device, SCALARS)
        self._objective, self._comm, self._timers, self._wishes = objective, comm, timers, wishes
        self._reported = (objective.gradient_samples, objective.value_samples)
        self.reductions = self.gradient_samples = self.value_samples = 0
        self._raised: set[Flag] = set()

    def sum_(self, terms: Sequence[Tensor] | None, **scalars: Sequence[float]) -> Tensor:
        """The sum over all subdomains of ``terms`` (one (n,) tensor each) and of the named scalars.

        The vector is the returned buffer, valid until the next call; scalars are read with ``get``.
        With ``terms`` None only scalars travel. The samples evaluated since the last call are counted.
        """
        large = terms is not None
        return self._exchange(terms, scalars, lambda message: self._comm.sum_(message, vector=large), large)

    def _exchange(
        self, terms: Sequence[Tensor] | None, scalars: dict[str, Sequence[float]], send: Callable[[Message], None], large: bool
    ) -> Tensor:
        with self._timers(timing.PACK):
            self._pack(terms, scalars)
        sent = self._comm.bytes
        with self._timers(timing.REDUCE):
            send(self.message)
        self._timers.count(timing.REDUCE, 1, self._comm.bytes - sent)
        self.reductions += large
        self.gradient_samples += round(self.get("gradient_samples"))
        self.value_samples += round(self.get("value_samples"))
        self._raised.update(flag for flag in Flag if self.message.count(flag))
        return self.message.vector

    def start_(self, terms: Sequence[Tensor], start: int, stop: int) -> None:
        """Begin the sum of entries start..stop-1 of ``terms``, which stay untouched until ``finish_``."""
        with self._timers(timing.PACK):
            self._add(terms, start, stop)
        sent = self._comm.bytes
        with self._timers(timing.REDUCE):
            self._comm.start_sum(self.message, start, stop)
        self._timers.count(timing.REDUCE, 1, self._comm.bytes - sent)

    def finish_(self, **scalars: Sequence[float]) -> Tensor:
        """As ``sum_``, for a vector of which all entries were started."""
        return self._exchange(None, scalars, self._comm.finish_sum, large=True)

    def counts(self) -> tuple[int, int, int]:
        """Gradient samples and value samples of all ranks, and vector reductions, so far."""
        return self.gradient_samples, self.value_samples, self.reductions

    def heard(self) -> frozenset[Flag]:
        """The flags that some rank raised since the last call."""
        raised = frozenset(self._raised)
        self._raised.clear()
        return raised

    def get(self, name: str) -> float:
        """A scalar of the last sum."""
        return self.message.get(name)

    def _pack(self, terms: Sequence[Tensor] | None, scalars: dict[str, Sequence[float]]) -> None:
        now = (self._objective.gradient_samples, self._objective.value_samples)
        counts = {"gradient_samples": [now[0] - self._reported[0]], "value_samples": [now[1] - self._reported[1]]}
        self._reported = now
        for name in SCALARS:
            self.message.put(name, counts.get(name) or scalars.get(name, ()))
        for flag in self._wishes():
            self.message.raise_flag(flag)
        if terms is not None:
            self._add(terms, 0, len(self.message.vector))

    def _add(self, terms: Sequence[Tensor], start: int, stop: int) -> None:
        """Entries start..stop-1 of the subdomains' sum, on a CPU in parts that a cache holds: whole vectors would go through memory."""
        size = BLOCK if self.message.vector.device.type == "cpu" else max(1, stop - start)
        for first in range(start, stop, size):
            part = slice(first, min(first + size, stop))
            self.message.vector[part].copy_(tree_sum([term[part] for term in terms], torch.add))
