"""Who owns which sample: blocks, borrowed heads, and the pairwise tree that ranks cannot change."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apts_mpi.partition import block, check_counts, head_size, tree_sum


@given(total=st.integers(0, 500), parts=st.integers(1, 60))
def test_blocks_fill_the_range_and_are_even(total: int, parts: int) -> None:
    blocks = [block(total, parts, index) for index in range(parts)]
    assert [i for part in blocks for i in part] == list(range(total))
    assert max(map(len, blocks)) - min(map(len, blocks)) <= 1


@pytest.mark.parametrize("index", [-1, 3, 10])
def test_no_such_block(index: int) -> None:
    with pytest.raises(ValueError, match=rf"block index must be in \[0, 3\), got {index}"):
        block(12, 3, index)


@given(subdomains=st.integers(1, 40), ranks=st.integers(1, 40))
def test_every_rank_gets_subdomains_if_the_counts_pass(subdomains: int, ranks: int) -> None:
    if ranks > subdomains:
        with pytest.raises(ValueError, match=f"{ranks} ranks share {subdomains} subdomains"):
            check_counts(1000, subdomains, ranks)
        return
    check_counts(1000, subdomains, ranks)
    assert all(len(block(subdomains, ranks, rank)) for rank in range(ranks))


@pytest.mark.fault(27)
def test_more_subdomains_than_samples_are_refused() -> None:
    check_counts(5, 5, 1)
    with pytest.raises(ValueError, match="6 subdomains need at least as many samples, the data set has 5"):
        check_counts(5, 6, 1)


@given(size=st.integers(0, 100_000), thousandths=st.integers(0, 1000))
def test_head_is_the_rounded_up_share(size: int, thousandths: int) -> None:
    """Twin in rationals: 0.05 * 20 is one sample, not two because of a rounding error."""
    assert head_size(size, thousandths / 1000) == math.ceil(Fraction(thousandths, 1000) * size)


def brackets(terms: list[str]) -> str:
    return tree_sum(terms, lambda a, b: f"({a}{b})")


def test_tree_by_hand() -> None:
    assert brackets(list("abcd")) == "((ab)(cd))"
    assert brackets(list("abcdefg")) == "((a(bc))((de)(fg)))"
    assert brackets(["a"]) == "a"


@given(depth=st.integers(0, 4), per_rank=st.integers(1, 5))
def test_cutting_over_ranks_leaves_the_tree(depth: int, per_rank: int) -> None:
    ranks = 2**depth
    names = [f"{i}," for i in range(ranks * per_rank)]
    groups = [names[i * per_rank : (i + 1) * per_rank] for i in range(ranks)]
    assert brackets([brackets(group) for group in groups]) == brackets(names)


def test_tree_sum_in_place_gives_the_bits_of_the_bracketed_sum() -> None:
    rows = list(np.random.default_rng(0).standard_normal((6, 50)).astype(np.float32))
    a, b, c, d, e, f = rows
    by_hand = (a + (b + c)) + (d + (e + f))
    assert np.array_equal(tree_sum([row.copy() for row in rows], lambda x, y: np.add(x, y, out=x)), by_hand)
