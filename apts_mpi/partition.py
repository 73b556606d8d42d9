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


def tree_sum(terms: Sequence[T], add: Callable[[T, T], T]) -> T:
    """Sum in the fixed pairwise tree: sum(lo, hi) = sum(lo, mid) + sum(mid, hi), mid = (lo + hi) // 2.

    Cutting the terms into P equal groups, P a power of two, and summing first within and then over
    the groups takes the same tree: the same bits. ``add`` may overwrite and return its first argument.
    """
    if len(terms) == 1:
        return terms[0]
    mid = len(terms) // 2
    return add(tree_sum(terms[:mid], add), tree_sum(terms[mid:], add))
