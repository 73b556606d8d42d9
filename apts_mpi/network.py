"""How long a sum over the ranks takes on a network of given latency and bandwidth: the stated model.

Two algorithms (Thakur, Rabenseifner, Gropp, Int. J. High Perf. Comput. Appl. 19(1), 2005), the better of
both for each length, with L = ceil(log2 P), alpha the latency, beta the inverse bandwidth, b bytes:

    recursive doubling   L (alpha + beta b)                          short messages
    Rabenseifner         2 L alpha + 2 (P - 1)/P beta b              long messages

The additions themselves are left out: they are done by the ranks, emulated network or not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from apts_mpi.config import CommConfig


def terms(ranks: int) -> tuple[tuple[float, float], tuple[float, float]]:
    """(latencies, buffer lengths) that lie one after the other: recursive doubling, Rabenseifner."""
    steps = (ranks - 1).bit_length()
    return (steps, steps), (2 * steps, 2 * (ranks - 1) / ranks)


@dataclass(frozen=True)
class Network:
    """A network that ``ranks`` ranks sum over."""

    latency: float  # alpha, s
    bandwidth: float  # 1 / beta, bytes/s; 0: bytes cost nothing
    ranks: int

    def parts(self, nbytes: int) -> tuple[float, float]:
        """Seconds of one sum of a buffer: in latencies, and in bytes on the wire."""
        per_byte = 1 / self.bandwidth if self.bandwidth else 0.0
        return min(((messages * self.latency, lengths * nbytes * per_byte) for messages, lengths in terms(self.ranks)), key=sum)

    def seconds(self, nbytes: int) -> float:
        """The time of one sum of a buffer."""
        return sum(self.parts(nbytes))

    def __str__(self) -> str:
        rate = f"{self.bandwidth / 1e9:.4g} GB/s" if self.bandwidth else "any bandwidth"
        return f"emulated network: {self.latency * 1e6:.4g} us, {rate}, P = {self.ranks}"


def emulated(config: CommConfig, ranks: int) -> Network | None:
    """The network that ``[comm]`` asks for; None if it asks for the real one alone."""
    if not (config.emulate_latency or config.emulate_bandwidth):
        return None
    return Network(config.emulate_latency, config.emulate_bandwidth, config.emulate_ranks or ranks)
