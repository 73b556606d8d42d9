"""Which samples are used when: against a twin in Python integers, for any number of ranks."""

from __future__ import annotations

import math
import re
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from problem_cases import case, used

from apts_mpi.partition import block, head_size
from apts_mpi.problem.objective import batch_size, needed_ranges, plan
from apts_mpi.problem.order import Order, shuffled

WORD = 2**64 - 1


def mix(v: int) -> int:
    """splitmix64's finaliser (Steele, Lea, Flood 2014) on Python integers."""
    v = (v ^ v >> 30) * 0xBF58476D1CE4E5B9 & WORD
    v = (v ^ v >> 27) * 0x94D049BB133111EB & WORD
    return v ^ v >> 31


def twin_order(seed: int, epoch: int, samples: list[int]) -> list[int]:
    salt = mix(mix(seed & WORD) + epoch & WORD)
    return sorted(samples, key=lambda sample: mix(sample + salt & WORD))


def twin_slice(part: list[int], batches: int, batch: int, overlap: float, seed: int, epoch: int) -> tuple[list[int], list[int]]:
    """A minibatch's own slice, and what it borrows from the next one."""
    if batches == 1:
        return part, []
    order = twin_order(seed, epoch, part)
    cuts = [order[k * len(order) // batches : (k + 1) * len(order) // batches] for k in range(batches)]
    return cuts[batch], cuts[(batch + 1) % batches][: math.ceil(Fraction(str(overlap)) * len(cuts[batch]))]


def test_known_values_of_the_mixer() -> None:
    """The first outputs of splitmix64 for seed 0 are the finaliser at multiples of the golden gamma."""
    gamma = 0x9E3779B97F4A7C15
    assert [mix(gamma * k & WORD) for k in (1, 2, 3)] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


@given(seed=st.integers(-(2**70), 2**70), epoch=st.integers(0, 10**6), start=st.integers(0, 10**9), count=st.integers(0, 40))
def test_shuffle_equals_its_twin(seed: int, epoch: int, start: int, count: int) -> None:
    samples = range(start, start + count)
    assert shuffled(seed, epoch, samples).tolist() == twin_order(seed, epoch, list(samples))


@given(
    start=st.integers(0, 1000), count=st.integers(1, 90), overlap=st.sampled_from([0.0, 0.05, 0.1, 0.3, 1.0]),
    batches=st.integers(1, 6), epoch=st.integers(0, 5),
)  # fmt: skip
def test_minibatches_equal_their_twin(start: int, count: int, overlap: float, batches: int, epoch: int) -> None:
    order = Order(range(start, start + count), overlap, batches, seed=4)
    head = list(order.indices)[: math.ceil(Fraction(str(overlap)) * count)]
    rest = list(order.indices)[len(head) :]
    assert (list(order.head), list(order.rest)) == (head, rest)
    for batch in range(batches):
        wanted = [sum(twin_slice(part, batches, batch, overlap, 4, epoch), []) for part in (head, rest)]
        assert [part.tolist() for part in order.of_batch(epoch, batch)] == wanted
        assert batch_size(order, batch) == sum(map(len, wanted))


@pytest.mark.parametrize(("samples", "subdomains", "batch"), [(2000, 2, 500), (997, 3, 200), (61, 4, 20)])
def test_every_sample_once_in_an_epoch_apart_from_the_overlap(samples: int, subdomains: int, batch: int) -> None:
    orders = plan(samples, subdomains, batch=batch, overlap=0.05, seed=0)
    batches = orders[0].batches
    for epoch in (0, 3):
        seen = Counter(i for order in orders for k in range(batches) for part in order.of_batch(epoch, k) for i in part.tolist())
        again = sum(
            len(twin_slice(list(part), batches, k, 0.05, 0, epoch)[1])
            for order in orders for part in (order.head, order.rest) for k in range(batches)
        )  # fmt: skip
        assert set(seen) == set(range(samples)) and max(seen.values()) <= 2
        assert sum(seen.values()) == samples + again
        plain = plan(samples, subdomains, batch=batch, overlap=0.0, seed=0)
        once = sorted(i for order in plain for k in range(batches) for part in order.of_batch(epoch, k) for i in part.tolist())
        assert once == list(range(samples))


def test_overlap_sizes_are_five_per_cent_of_a_subdomains_own_size() -> None:
    orders = plan(40_000, 4, batch=10_000, overlap=0.05, seed=0)
    share = 40_000 // 4 // 4
    for i, order in enumerate(orders):
        for k in range(4):
            head, rest = order.of_batch(0, k)
            assert 1.05 * share <= len(head) + len(rest) <= 1.05 * share + 3
            borrowed = orders[(i + 1) % 4].of_batch(0, k)[0]
            assert 0.05 * share <= len(borrowed) <= 0.05 * 1.05 * share + 2


def test_borrowed_samples_are_the_neighbours_in_the_same_minibatch() -> None:
    this = case(samples=100, subdomains=3, batch=33)
    for k in range(3):
        for i in range(3):
            owned, borrowed = this.rows(i, 1, k)
            neighbour = set(this.rows((i + 1) % 3, 1, k)[0])
            assert borrowed and set(borrowed) <= neighbour and not set(borrowed) & set(owned)


@pytest.mark.parametrize("batch", [0, 20])
@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_same_samples_for_any_number_of_ranks(ranks: int, batch: int) -> None:
    """What the subdomains of all ranks are given is what the orders say, sample by sample."""
    subdomains, seen = 5, 0
    for rank in range(ranks):
        this = case(subdomains=subdomains, batch=batch, ranks=ranks, rank=rank)
        this.objective.select(2, this.objective.batches - 1)
        mine = block(subdomains, ranks, rank)
        assert len(this.objective.subdomains) == len(mine)
        for i, subdomain in zip(mine, this.objective.subdomains, strict=True):
            rows = sum(this.rows(i, 2, this.objective.batches - 1), [])
            inputs, targets = used(subdomain)
            assert torch.allclose(inputs, this.inputs[rows], rtol=0, atol=1e-12) and torch.equal(targets, this.targets[rows])
            seen += 1
    assert seen == subdomains


def test_order_depends_on_seed_and_epoch_in_minibatches_alone() -> None:
    samples = range(100, 160)
    orders = {tuple(shuffled(seed, epoch, samples).tolist()) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9
    full = Order(samples, 0.1, 1, seed=0)
    assert np.concatenate(full.of_batch(0, 0)).tolist() == np.concatenate(full.of_batch(7, 0)).tolist() == list(samples)


@given(samples=st.integers(18, 200), subdomains=st.integers(1, 6), ranks=st.integers(1, 6), overlap=st.sampled_from([0.0, 0.05, 0.5]))
def test_a_rank_needs_its_block_and_the_neighbours_head(samples: int, subdomains: int, ranks: int, overlap: float) -> None:
    ranks = min(ranks, subdomains)
    orders = plan(samples, subdomains, batch=samples // 2, overlap=overlap, seed=3)
    for rank in range(ranks):
        mine = block(subdomains, ranks, rank)
        own, halo = needed_ranges(orders, mine)
        assert list(own) == [i for number in mine for i in block(samples, subdomains, number)]
        following = block(samples, subdomains, mine.stop % subdomains)
        assert list(halo) == (list(following)[: head_size(len(following), overlap)] if subdomains > 1 else [])
        held = {*own, *halo}
        for number in mine:
            for batch in range(orders[0].batches):
                wanted = np.concatenate([*orders[number].of_batch(1, batch), orders[(number + 1) % subdomains].of_batch(1, batch)[0]])
                assert subdomains == 1 or set(wanted.tolist()) <= held


@pytest.mark.fault(27)
def test_a_minibatch_too_small_for_the_subdomains_is_refused() -> None:
    with pytest.raises(ValueError, match=r"data.batch = 5 is too small for 10 subdomains: some .*; take at least 10$"):
        plan(100, 10, batch=5, overlap=0.0, seed=0)
    told = r"data.batch = 1 is too small for 1 subdomain with data.overlap = 0.05: some .*; take at least 2, or data.overlap = 0$"
    with pytest.raises(ValueError, match=told):
        plan(100, 1, batch=1, overlap=0.05, seed=0)
    assert plan(100, 1, batch=1, overlap=0.0, seed=0)[0].batches == 100


@given(st.integers(1, 60), st.integers(1, 7), st.integers(1, 60), st.sampled_from([0.0, 0.05, 0.3, 0.9]))
def test_the_least_minibatch_that_is_named_is_the_least_that_leaves_nobody_empty(
    samples: int, subdomains: int, batch: int, overlap: float
) -> None:
    assume(subdomains <= samples)

    def fits(size: int) -> bool:
        batches = max(1, round(samples / size))
        orders = [Order(block(samples, subdomains, i), overlap, batches, 0) for i in range(subdomains)]
        return all(batch_size(order, k) for order in orders for k in range(batches))

    try:
        plan(samples, subdomains, batch=batch, overlap=overlap, seed=0)
    except ValueError as error:
        named = re.search(r"take at least (\d+)", str(error))
        assert named and not fits(batch)
        assert int(named[1]) == next(size for size in range(batch, samples + 1) if fits(size))
    else:
        assert fits(batch)


@pytest.mark.parametrize(("batch", "batches"), [(0, 1), (100, 1), (1000, 1), (33, 3), (49, 2)])
def test_number_of_minibatches(batch: int, batches: int) -> None:
    assert plan(100, 2, batch=batch, overlap=0.05, seed=0)[0].batches == batches
