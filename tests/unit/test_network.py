"""The model of a sum's time, against values worked out by hand, and the settings that switch it on."""

from __future__ import annotations

import math

import pytest

from apts_mpi.config import CommConfig
from apts_mpi.network import Network, emulated, terms


@pytest.mark.parametrize(
    ("ranks", "nbytes", "expected"),
    [
        (1, 1000, 0.0),
        (2, 1000, 1 * 1.0 + 1 * 10.0),  # both algorithms send 1000 bytes; doubling needs one latency less
        (4, 0, 2.0),
        (4, 1000, min(2 * (1 + 10), 2 * 2 + 2 * 3 / 4 * 10)),
        (8, 1000, 6 + 2 * 7 / 8 * 10),  # Rabenseifner
        (8, 100, 3 * (1 + 1)),  # recursive doubling
        (5, 10, 3 * 1.1),  # not a power of two: rounded up
        (4096, 10**6, 24 + 2 * 4095 / 4096 * 10**4),
    ],
)
def test_seconds_by_hand(ranks: int, nbytes: int, expected: float) -> None:
    assert Network(1.0, 100.0, ranks).seconds(nbytes) == pytest.approx(expected)


def test_terms() -> None:
    assert terms(1) == ((0, 0), (0, 0.0))
    assert terms(2) == ((1, 1), (2, 1.0))
    assert terms(8) == ((3, 3), (6, 1.75))


def test_either_part_alone() -> None:
    assert Network(2.0, 0.0, 4).seconds(10**9) == 4.0
    assert Network(0.0, 1e9, 2).seconds(10**9) == 1.0
    assert Network(0.0, math.inf, 2).seconds(10**9) == 0.0


def test_what_the_settings_ask_for() -> None:
    assert emulated(CommConfig(), 4) is None
    assert emulated(CommConfig(emulate_latency=1e-3), 4) == Network(1e-3, 0.0, 4)
    network = emulated(CommConfig(emulate_latency=5e-5, emulate_bandwidth=1.25e9, emulate_ranks=64), 2)
    assert network == Network(5e-5, 1.25e9, 64)
    assert str(network) == "emulated network: 50 us, 1.25 GB/s, P = 64"
    assert "any bandwidth" in str(emulated(CommConfig(emulate_latency=1.0), 2))


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"count_limit": 0}, "comm.count_limit must be in"),
        ({"emulate_latency": -1.0}, "comm.emulate_latency must be in"),
        ({"emulate_latency": math.nan}, "comm.emulate_latency must be in"),
        ({"emulate_latency": 61.0}, "comm.emulate_latency must be in"),
        ({"emulate_bandwidth": -1.0}, "comm.emulate_bandwidth must be in"),
        ({"emulate_ranks": -1, "emulate_latency": 1.0}, "comm.emulate_ranks must be in"),
        ({"emulate_ranks": 8}, "emulate_ranks needs comm.emulate_latency or"),
    ],
)
def test_refused(keys: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        CommConfig(**keys)  # type: ignore[arg-type]
