"""Who owns which sample: block arithmetic, no data, no ranks' buffers.

Samples 0..p-1 are cut into N contiguous subdomains, subdomains into P contiguous groups of
ranks. Subdomain i also sees the *halo*: the first share of its right neighbour's samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


def block(total: int, parts: int, index: int) -> range:
    """The ``index``-th of ``parts`` contiguous blocks of range(total); sizes differ by at most one."""
    if not 0 <= index < parts:
        raise ValueError(f"block index must be in [0, {parts}), got {index}")
    return range(index * total // parts, (index + 1) * total // parts)


def check_counts(samples: int, subdomains: int, ranks: int) -> None:
    """Refuse a partition that leaves a subdomain without samples or a rank without a subdomain."""
    if subdomains > samples:
        raise ValueError(f"{subdomains} subdomains need at least as many samples, the data set has {samples}")
    if ranks > subdomains:
        raise ValueError(f"{ranks} ranks share {subdomains} subdomains; use at least one subdomain per rank")


def head_size(size: int, overlap: float) -> int:
    """How many samples of a block of ``size`` its left neighbour borrows: ceil(overlap * size)."""
    return min(size, -(-int(round(overlap * size * 1_000_000)) // 1_000_000))


def minibatches(samples: int, batch: int) -> int:
    """Minibatches of about ``batch`` samples in an epoch; 0: all samples at once."""
    return max(1, round(samples / batch)) if batch else 1


def check_batch(samples: int, subdomains: int, batch: int, overlap: float) -> None:
    """ValueError, with the least number that will do, if a minibatch of ``batch`` samples would leave a subdomain without any.

    With an overlap the head of a block and the rest of it are cut into minibatches apart: one of the two must reach for all.
    """

    def fits(batch: int, overlap: float = overlap) -> bool:
        size = len(block(samples, subdomains, 0))  # no subdomain is smaller
        head = head_size(size, overlap)
        return max(head, size - head) >= minibatches(samples, batch)

    if fits(batch):
        return
    least = next((larger for larger in range(batch + 1, samples) if fits(larger)), samples)
    named = f"{subdomains} subdomain{'s' * (subdomains > 1)}" + (f" with data.overlap = {overlap:g}" if overlap else "")
    other = ", or data.overlap = 0" if overlap and fits(batch, 0.0) else ""
    told = f"data.batch = {batch} is too small for {named}: some subdomain would have no sample in some minibatch"
    raise ValueError(f"{told}; take at least {least}{other}")


def tree_sum(terms: Sequence[T], add: Callable[[T, T], T]) -> T:
    """Sum in the fixed pairwise tree: sum(lo, hi) = sum(lo, mid) + sum(mid, hi), mid = (lo + hi) // 2.

    Cutting the terms into P equal groups, P a power of two, and summing first within and then over
    the groups takes the same tree: the same bits. ``add`` may overwrite and return its first argument.
    """
    if len(terms) == 1:
        return terms[0]
    mid = len(terms) // 2
    return add(tree_sum(terms[:mid], add), tree_sum(terms[mid:], add))
