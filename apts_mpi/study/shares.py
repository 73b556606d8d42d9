"""How many samples a rank's subdomains have in a minibatch: the arithmetic of ``problem/order`` without the samples."""

from __future__ import annotations

from dataclasses import dataclass

from apts_mpi.config import Config
from apts_mpi.partition import block, check_batch, check_counts, head_size, minibatches


@dataclass(frozen=True)
class Share:
    """A subdomain's samples in a minibatch."""

    owned: int
    borrowed: int

    @property
    def size(self) -> int:
        return self.owned + self.borrowed


def batches(config: Config, samples: int) -> int:
    """Minibatches in an epoch."""
    return minibatches(samples, config.data.batch)


def shares(config: Config, ranks: int, samples: int, batch: int = 0, rank: int | None = None) -> list[Share]:
    """The samples of a rank's subdomains in a minibatch; the last rank, which has most, unless told otherwise."""
    count, number = config.solver.subdomains or ranks, batches(config, samples)
    check_counts(samples, count, ranks)
    overlap = config.data.overlap if config.method in ("apts", "trust-region") else 0.0
    check_batch(samples, count, config.data.batch, overlap)
    found = []
    for i in block(count, ranks, ranks - 1 if rank is None else rank):
        size, following = (len(block(samples, count, k % count)) for k in (i, i + 1))
        head = head_size(size, overlap)
        owned = sum(_slice(part, number, batch, overlap) for part in (head, size - head))
        borrowed = _slice(head_size(following, overlap), number, batch, overlap) if count > 1 and overlap else 0
        found.append(Share(owned, borrowed))
    return found


def _slice(samples: int, number: int, batch: int, overlap: float) -> int:
    """Of ``samples`` in an order: those of a minibatch, with its overlap into the next."""
    if number == 1:
        return samples
    mine, following = (len(block(samples, number, k % number)) for k in (batch, batch + 1))
    return mine + min(following, head_size(mine, overlap))
