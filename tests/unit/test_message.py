"""The message: exact scalars in float32 cells against fractions, flags, refusals."""

from __future__ import annotations

import math
import mmap
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apts_mpi.contracts import Flag
from apts_mpi.parallel.message import DIGITS, HUGE_PAGE, LANE, TERMS_MAX, FlatMessage, check_flat, decode, encode

CPU = torch.device("cpu")
POINT = 2**120
inside = st.floats(min_value=-(2.0**70.999), max_value=2.0**70.999, allow_nan=False)
anything = st.one_of(inside, st.sampled_from([0.0, -0.0, 5e-324, -5e-324, 2.0**-120, 2.0**-121, math.nextafter(2.0**71, 0)]))


def exact(values: list[float]) -> float:
    """Twin: fractions, each rounded to 2^-120 first."""
    return float(sum((Fraction(round(Fraction(value) * POINT), POINT) for value in values), Fraction(0)))


@given(st.lists(anything, min_size=1, max_size=20), st.randoms())
@settings(max_examples=300, deadline=None)
def test_sum_is_exact_and_knows_no_order(values: list[float], random: object) -> None:
    lanes = [encode([value]).astype(np.float32) for value in values]
    random.shuffle(lanes)  # type: ignore[attr-defined]
    total = np.zeros(LANE, np.float32)
    for lane in lanes:
        total += lane
    assert decode(total) == exact(values)
    assert decode(encode(values)) == exact(values)


@given(st.lists(st.floats(1e-15, 1e15) | st.floats(-1e15, -1e-15), min_size=1, max_size=50))
def test_no_bit_is_lost_in_the_usual_range(values: list[float]) -> None:
    assert decode(encode(values)) == math.fsum(values)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 2.0**71, -(2.0**71), 1e300])
def test_a_value_out_of_range_makes_the_sum_nan(bad: float) -> None:
    assert math.isnan(decode(encode([1.0, bad, 2.0])))
    assert decode(encode([1.0, 2.0])) == 3.0


def test_largest_number_of_terms_is_exact_in_float32() -> None:
    lane = encode([math.nextafter(2.0**71, 0)])
    lane[:DIGITS] = 255  # the largest digits there are
    total = np.zeros(LANE, np.float32)
    for _ in range(TERMS_MAX):
        total += lane.astype(np.float32)
    assert total[0] == 255 * TERMS_MAX < 2**24
    assert decode(total) == float(Fraction(TERMS_MAX * (2**191 - 1), POINT))
    with pytest.raises(OverflowError, match="65793"):
        decode(total + lane)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_vector_lanes_and_flags_share_one_buffer(dtype: torch.dtype) -> None:
    message = FlatMessage(5, dtype, CPU, ["loss", "norm"])
    message.vector.fill_(7.0)
    message.put("loss", [0.1, 0.2])
    message.put("norm", (x for x in [4.0]))
    message.raise_flag(Flag.SAVE)
    assert message.host.shape == (5 + 2 * LANE + len(Flag),)
    assert message.host[:5].tolist() == [7.0] * 5
    assert message.fetch(True) is message.host
    message.settle(True)
    assert message.get("loss") == 0.30000000000000004 and message.get("norm") == 4.0
    assert message.count(Flag.SAVE) == 1 and message.count(Flag.STOP) == 0


def test_lanes_and_flags_are_empty_after_a_sum() -> None:
    message = FlatMessage(1, torch.float32, CPU, ["loss"])
    message.put("loss", [1.0])
    message.raise_flag(Flag.STOP)
    message.settle(True)
    message.put("loss", [2.0])
    assert message.get("loss") == 1.0  # still the last sum
    message.settle(True)
    assert message.get("loss") == 2.0 and message.count(Flag.STOP) == 0
    message.settle(True)
    with pytest.raises(ValueError, match="no rank put the scalar 'loss'"):
        message.get("loss")


def test_put_replaces() -> None:
    message = FlatMessage(1, torch.float32, CPU, ["loss"])
    message.put("loss", [1.0, math.nan])
    message.put("loss", [3.0])
    message.settle(True)
    assert message.get("loss") == 3.0


def test_refusals() -> None:
    message = FlatMessage(3, torch.float32, CPU, ["loss"])
    with pytest.raises(KeyError, match="no scalar 'los'; planned: loss"):
        message.put("los", [1.0])
    with pytest.raises(ValueError, match="bfloat16"):
        FlatMessage(3, torch.bfloat16, CPU, [])
    with pytest.raises(ValueError, match="must differ"):
        FlatMessage(3, torch.float32, CPU, ["a", "a"])
    message.vector = torch.zeros(3)
    with pytest.raises(ValueError, match="was replaced"):
        message.fetch(True)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(2, 2),
        torch.zeros(()),
        torch.zeros(6)[::2],
        torch.zeros(3, 2).t()[0],
        torch.zeros(3, dtype=torch.bfloat16),
        torch.zeros(3, dtype=torch.float16),
        torch.zeros(3, dtype=torch.int64),
        torch.zeros(3, dtype=torch.complex64),
    ],
    ids=lambda t: f"{tuple(t.shape)}-{t.dtype}",
)
def test_only_flat_float_tensors_pass_the_door(tensor: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="only 1-D contiguous float32 or float64"):
        check_flat(tensor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_long_message_lies_in_huge_pages_and_is_its_own(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Zeros that begin at such a page; both without such pages and where the kernel refuses them the message is the same."""
    count = HUGE_PAGE // 4 + 3
    long, other = (FlatMessage(count, dtype, CPU, ["loss"]) for _ in range(2))
    assert not long.host.any() and long.vector.shape == (count,) and long.vector.data_ptr() == long.host.ctypes.data
    if hasattr(mmap, "MADV_HUGEPAGE"):
        assert long.host.ctypes.data % HUGE_PAGE == 0
    long.vector.fill_(2.0)
    assert long.host[:count].sum() == 2.0 * count and not other.host.any()
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    plain = FlatMessage(count, dtype, CPU, ["loss"])
    assert plain.host.shape == long.host.shape and plain.host.dtype == long.host.dtype and not plain.host.any()
