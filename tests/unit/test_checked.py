"""The checksum of a sum, with ranks that are threads' turns: P vectors, their true sum, and sums that are wrong on purpose."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from apts_mpi.parallel.checked import BLOCK, BOUND, CHECKSUM, CheckedCommunicator, bound, squares, tolerance, total
from apts_mpi.parallel.handshake import ReductionError
from apts_mpi.parallel.message import FlatMessage
from apts_mpi.parallel.serial import SerialCommunicator

CPU = torch.device("cpu")
Wrong = Callable[[list[np.ndarray[Any, Any]], np.ndarray[Any, Any]], None]  # (each rank's buffer, its sum), changed in place


def nothing(buffers: list[np.ndarray[Any, Any]], result: np.ndarray[Any, Any]) -> None:
    """A true sum."""


class OneOfMany(SerialCommunicator):
    """Rank 0 of several: the others' buffers are given, the sum is made here, in rank order or backwards."""

    def __init__(self, size: int, vectors: list[torch.Tensor], wrong: Wrong) -> None:
        super().__init__()
        self.size, self.vectors, self.wrong = size, vectors, wrong  # type: ignore[misc]

    def plan(self, *args: Any) -> FlatMessage:
        self.args = args
        return FlatMessage(*args)

    def sum_(self, message: Any, vector: bool = True) -> None:
        others = [self.like(x, message) for x in self.vectors[1:]]
        cells = message.fetch(vector)
        start = len(message.host) - len(cells)
        buffers = [cells.copy(), *(other.host[start:].copy() for other in others)]
        if not vector:
            for other in buffers[1:]:
                other[:] = buffers[0]  # the same scalars from all
        cells[:] = 0
        with np.errstate(over="ignore", invalid="ignore"):
            for buffer in buffers:
                cells += buffer
        self.wrong(buffers, cells)
        message.settle(vector)

    def like(self, x: torch.Tensor, message: FlatMessage) -> FlatMessage:
        """The message of another rank that has put its checksums."""
        other = FlatMessage(*self.args)
        other.vector.copy_(x)
        CheckedCommunicator(self)._put(other, [float(total(x)), float(squares(x))])
        return other

    def start_sum(self, message: Any, start: int, stop: int) -> None: ...

    def finish_sum(self, message: Any) -> None:
        self.sum_(message)


def summed(vectors: list[torch.Tensor], wrong: Wrong = nothing, parts: int = 0, vector: bool = True) -> torch.Tensor:
    """The checked sum as rank 0 sees it."""
    comm = CheckedCommunicator(OneOfMany(len(vectors), vectors, wrong))
    message = comm.plan(len(vectors[0]), vectors[0].dtype, CPU, ["loss"])
    message.vector.copy_(vectors[0])
    message.put("loss", [1.0])
    if parts:
        for start in range(0, len(vectors[0]), parts):
            comm.start_sum(message, start, min(start + parts, len(vectors[0])))
        comm.finish_sum(message)
    else:
        comm.sum_(message, vector)
    return message.vector


def made(random: np.random.Generator, n: int, ranks: int, dtype: torch.dtype, kind: int) -> list[torch.Tensor]:
    """Vectors of several sorts."""
    base = random.standard_normal((ranks, n))
    if kind == 1:
        base *= np.exp2(random.integers(-10, 11, (ranks, n)))  # 20 binary orders
    elif kind == 2:
        base[1:] = -base[:1] / (ranks - 1) * (1 + 1e-6 * base[1:])  # contributions that cancel
    elif kind == 3:
        base *= 10.0 ** random.integers(-30, 31)  # any size, 1e30 included
    elif kind == 4:
        base = np.abs(base) + 1000.0  # all of one sign
    elif kind == 5:
        base *= random.random((ranks, n)) < 0.01  # mostly zeros
    elif kind == 6:
        base = np.full((ranks, n), 1 / 3) * 10.0 ** random.integers(-44, 19)  # roundings that add up, to subnormal numbers
    return [torch.from_numpy(row).to(dtype) for row in base]


def test_no_false_alarm() -> None:
    random = np.random.default_rng(0)
    for case in range(1000):
        n = int(random.choice([1, 7, 8, 9, 100, 1001, 20_011]))
        dtype = torch.float64 if case % 5 == 0 else torch.float32
        vectors = made(random, n, 2 + case % 3, dtype, case % 7)
        found = summed(vectors, parts=random.integers(1, n + 1) if case % 2 else 0)
        assert torch.equal(found, sum(vectors[1:], start=vectors[0]))


def test_the_tolerance_is_not_idle() -> None:
    """All entries are rounded the same way, by as much as two additions can: within the bound, and not far from it."""
    n, ranks, value = 4096, 3, 1 + 2.0**-23
    result = torch.full((n,), value) + value + value
    off = abs(float(result.double().sum()) - ranks * n * value)
    norms = ranks * bound(n, n * value**2, torch.finfo(torch.float32).tiny)
    assert 0 < off <= tolerance(n, ranks, torch.finfo(torch.float32).eps, norms) < 30 * off


@pytest.mark.parametrize("n", [5, 8, 1000, BLOCK + 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sums_and_bounds(n: int, dtype: torch.dtype) -> None:
    x = made(np.random.default_rng(n), n, 1, dtype, 1)[0]
    true, norm = math.fsum(x.tolist()), math.fsum(x.abs().tolist())
    info = torch.finfo(dtype)
    assert abs(float(total(x)) - true) <= norm * (7 * info.eps / 2 + n * 2.0**-53)
    assert norm <= bound(n, float(squares(x)), info.tiny) <= 1.1 * math.sqrt(n) * float(x.double().norm())
    small = torch.full((n,), info.tiny, dtype=dtype)  # the squares are 0
    assert bound(n, float(squares(small)), info.tiny) >= n * info.tiny


def drop(buffers: list[np.ndarray[Any, Any]], result: np.ndarray[Any, Any]) -> None:
    result -= buffers[-1]


def double(buffers: list[np.ndarray[Any, Any]], result: np.ndarray[Any, Any]) -> None:
    result += buffers[-1]


def drop_vector(buffers: list[np.ndarray[Any, Any]], result: np.ndarray[Any, Any]) -> None:
    result[:5000] -= buffers[-1][:5000]


def drop_piece(buffers: list[np.ndarray[Any, Any]], result: np.ndarray[Any, Any]) -> None:
    result[100:120] -= buffers[-1][100:120]


def flip(bit: int, of: str = "largest") -> Wrong:
    """One bit of one entry of the sum."""

    def flipped(buffers: list[np.ndarray[Any, Any]], result: np.ndarray[Any, Any]) -> None:
        i = int(np.argmax(np.abs(result[:5000]))) if of == "largest" else int(np.argsort(np.abs(result[:5000]))[2500])
        result.view(np.uint32)[i] ^= np.uint32(1 << bit)

    return flipped


WRONG = {"drop": drop, "double": double, "drop vector": drop_vector, "drop piece": drop_piece, "sign": flip(31)}
WRONG |= {f"exponent bit {bit}": flip(bit) for bit in range(23, 31)}
WRONG |= {f"exponent bit {bit} of a middling entry": flip(bit, "median") for bit in (26, 28, 30)}


@pytest.mark.fault(58)
@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("parts", [0, 700])
@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_sum_is_found(what: str, parts: int, ranks: int) -> None:
    vectors = made(np.random.default_rng(ranks), 5000, ranks, torch.float32, 0)
    with pytest.raises(ReductionError, match="5000 float32") as caught:
        summed(vectors, WRONG[what], parts)
    text = str(caught.value)
    assert "rank 0 on " in text and ("contributions instead of" in text) == (what in ("drop", "double")) and "comm.reduction" in text


@pytest.mark.fault(58)
@pytest.mark.parametrize("wrong", [drop, double])
def test_a_contribution_lost_or_doubled_is_found_without_a_vector_too(wrong: Wrong) -> None:
    vectors = made(np.random.default_rng(0), 10, 3, torch.float32, 0)
    with pytest.raises(ReductionError, match="contributions instead of 3"):
        summed(vectors, wrong, vector=False)
    summed(vectors, vector=False)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30, 3e38])
def test_numerical_trouble_is_left_to_the_solver(bad: float) -> None:
    vectors = made(np.random.default_rng(0), 100, 3, torch.float32, 0)
    vectors[1][7] = bad
    vectors[2][7] = -bad
    summed(vectors)
    vectors[0][:] = bad
    summed(vectors)


def test_a_sum_that_becomes_nan_on_the_way_is_found() -> None:
    def break_(buffers: list[np.ndarray[Any, Any]], result: np.ndarray[Any, Any]) -> None:
        result[3] = math.nan

    with pytest.raises(ReductionError, match="add to nan"):
        summed(made(np.random.default_rng(0), 100, 2, torch.float32, 0), break_)


def test_the_lanes_are_exact_for_every_order() -> None:
    comm = CheckedCommunicator(OneOfMany(1, [torch.ones(3)], nothing))
    message = comm.plan(3, torch.float32, CPU, [])
    message.vector.fill_(1.0)
    comm.sum_(message)
    assert message.get(CHECKSUM) == 3.0 and message.get(BOUND) >= 3.0
