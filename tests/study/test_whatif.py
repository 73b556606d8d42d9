"""Crossovers against a search of all numbers, the stated fabrics, and what is left on disk."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from machine_cases import N, machine

from apts_mpi.network import Network
from apts_mpi.presets import preset
from apts_mpi.study import whatif_report as report
from apts_mpi.study.document import Heading, Paragraph, Picture, Table
from apts_mpi.study.roofline import roofline
from apts_mpi.study.whatif import (
    BLOCKING,
    OVERLAPPED,
    Crossover,
    Effort,
    Fabric,
    crossovers,
    fabrics,
    seconds_of,
    time_to_target,
    variants,
    whatif,
    widest_range,
)  # fmt: skip

CONFIG = preset("default")
SLOW = Fabric("slow", 1e-3, 1e6, "a test")
FREE = Fabric("free", 0.0, 0.0, "a test")


@pytest.mark.parametrize("seed", range(20))
def test_a_range_is_found_like_by_trying_all(seed: int) -> None:
    rng = random.Random(seed)
    low = rng.randint(1, 400)
    high = rng.randint(low + low // 8 + 1, 1000)  # one change between two numbers that are tried
    assert widest_range(lambda b: low <= b <= high, 1024) == (low, high)
    assert widest_range(lambda b: b <= high, 1024) == (1, high)
    assert widest_range(lambda b: b >= low, 1024) == (low, math.inf)
    assert widest_range(lambda b: True, 1024) == (1, math.inf)
    assert widest_range(lambda b: False, 1024) == (0, 0)
    assert widest_range(lambda b: b == 1 or 30 <= b <= 40 or b >= low, 1024) == (low, math.inf)


def test_crossovers_are_those_of_trying_all() -> None:
    ranks = (2, 64)
    found = crossovers(machine(), CONFIG, N, [SLOW, FREE], ranks)
    assert len(found) == 2 * 2 * 4 * 2
    seen = set()
    for p in ranks:
        rows = {b: whatif(machine(), CONFIG, N, [SLOW, FREE], [p], b) for b in range(1, 300)}
        for each in (each for each in found if each.ranks == p):
            def time(method: str, b: int, each: Crossover = each, rows: dict = rows) -> float:  # type: ignore[type-arg]
                return next(row.seconds for row in rows[b] if (row.fabric, row.method) == (each.fabric, method))

            won = [b for b in rows if time(each.method, b) < time(each.against, b)]
            first = won[0] if won else 0
            seen.add(str(each)[0])
            if each.low and each.low < 300:
                assert each.low == first
                lost = next((b for b in range(first, 300) if b not in won), None)
                assert lost is None or each.high == lost - 1
            else:
                assert not won
    assert {"a"} < seen, "the machine of the test shows one kind of answer only"


def test_words_of_a_crossover() -> None:
    ranges = [(0, 0.0), (1, math.inf), (1, 40.0), (7, math.inf), (7, 40.0)]
    assert [str(Crossover("f", "m", "a", 2, low, high)) for low, high in ranges] == ["never", "always", "<=40", ">=7", "7-40"]


def test_blocking_sgd_by_hand() -> None:
    rows = whatif(machine(), CONFIG, N, [SLOW], [1, 16], 128)
    alone, many = (row for row in rows if row.method == BLOCKING)
    bare = 1e-3 + 128e-5 + 5e-5 + 128e-6 + 20e-6 + 6e-6 + 4e-5
    assert alone.seconds == pytest.approx(bare) and alone.gradients == 1
    nbytes = 4 * (N + 263)
    assert many.seconds == pytest.approx(bare + 12e-6 + Network(1e-3, 1e6, 16).seconds(nbytes) + 3e-6 * nbytes / (4 * N))
    assert many.bytes == nbytes


def test_gradients_of_an_iteration() -> None:
    rows = {row.method: row for row in whatif(machine(), CONFIG, N, [FREE], [4], 64)}
    assert [rows[f"APTS nu = {nu}"].gradients for nu in (5, 10, 20)] == [8, 13, 23]
    assert rows["APTS sweep"].gradients == pytest.approx(1 + 2 - 3 / 64)  # the first of 20 chunks, of 3 samples, is not evaluated again
    assert rows[OVERLAPPED].gradients == rows[BLOCKING].gradients == 1


def test_slower_fabrics_and_more_ranks_take_no_less() -> None:
    ranks = (1, 2, 8, 64, 4096)
    chain = [FREE, *(Fabric(str(k), 1e-6 * k, 1e10 / k, "") for k in (1, 10, 100)), SLOW]
    rows = whatif(machine(), CONFIG, N, chain, ranks, 32)
    for name in variants(CONFIG):
        table = np.array([[row.seconds for row in rows if (row.fabric, row.method) == (f.name, name)] for f in chain])
        assert (np.diff(table, axis=0)[:, 1:] > -1e-15).all() and (np.diff(table, axis=1) > -1e-15).all()
        assert np.ptp(table[:, 0]) == 0  # alone nothing is sent


def test_overlap_saves_at_most_the_backward_pass() -> None:
    rows = {row.method: row for row in whatif(machine(), CONFIG, N, [SLOW], [16], 256)}
    saved = rows[BLOCKING].seconds - rows[OVERLAPPED].seconds
    assert 0 < saved < 1e-3 + 256e-5


def test_emulated_settings_do_not_count_twice() -> None:
    emulating = preset("default", comm={"emulate_latency": 1.0})
    assert whatif(machine(), emulating, N, [SLOW], [8], 16) == whatif(machine(), CONFIG, N, [SLOW], [8], 16)


def test_time_to_target() -> None:
    config = preset("default", "sgd", data={"batch": 64})
    whole = 64 / 256  # passes of a step
    found = time_to_target(machine(), N, 256, {"SGD": Effort(config, 100, 100 * whole)}, [SLOW], (1, 4, 128))
    assert [each.ranks for each in found] == [1, 4]  # 64 samples cannot be cut for 128 ranks
    for each in found:
        assert each.seconds == pytest.approx(100 * sum(seconds_of(machine(), config, N, SLOW, each.ranks, 256)[1].values()))
    half = time_to_target(machine(), N, 256, {"SGD": Effort(config, 100, 50 * whole)}, [SLOW], (1,))[0]
    parts = seconds_of(machine(), config, N, SLOW, 1, 256)[1]
    assert found[0].seconds - half.seconds == pytest.approx(50 * parts["gradients"])


def test_roofline() -> None:
    found = roofline(1e12, 1e11, N, 6.0 * N, memory=2, numbers=100, overhead=1e-6).rank(1)
    assert found.gradients(1024) == pytest.approx(1e-6 + 6.0 * N * 1024 / 1e12)
    assert found.gradients(1) == pytest.approx(1e-6 + 3 * 4 * N / 1e11)
    assert found.values(1024) == pytest.approx(1e-6 + 2.0 * N * 1024 / 1e12)
    assert found.vector["add"] == pytest.approx(12 * N / 1e11) and found.lsr1[2] == pytest.approx(18 * 4 * N / 1e11)
    assert all(a < b for _, row in found.parts.ready for a, b in zip(row[:-2], row[1:-1], strict=True))
    assert len(whatif(roofline(1e12, 1e11, N, 6.0 * N), CONFIG, N, [SLOW], [1, 4], 64)) == 12
    with pytest.raises(ValueError, match="must be positive"):
        roofline(0, 1e11, N, 6.0 * N)


def test_fabrics_can_be_added_and_replaced() -> None:
    own = Fabric("10 GbE", 1e-6, 1e9, "measured")
    names = [fabric.name for fabric in fabrics(own, SLOW)]
    assert names[-1] == "slow" and len(names) == len(set(names)) == len(fabrics()) + 1
    assert own in fabrics(own) and all(fabric.source for fabric in fabrics())


def test_what_is_written(tmp_path: Path) -> None:
    rows = whatif(machine(), CONFIG, N, [SLOW, FREE], (1, 2, 4), 64)
    found = crossovers(machine(), CONFIG, N, [SLOW, FREE], (1, 2, 4))
    sgd = replace(variants(CONFIG)[BLOCKING], data=replace(CONFIG.data, batch=64))
    targets = time_to_target(machine(), N, 256, {"SGD": Effort(sgd, 10, 2.5)}, [SLOW], (1, 2))
    paths = report.write_whatif(rows, found, tmp_path / "new", targets, ["as measured at P = 2"])
    assert [path.name for path in paths] == ["whatif.csv", "whatif.txt", "whatif.pdf", "whatif.png"]
    assert all(path.stat().st_size > 100 for path in paths)
    text = paths[1].read_text()
    for words in ("no contention", "slow: ms per gradient of 64", "seconds to target", "as measured at P = 2"):
        assert words in text
    shown = next(row for row in rows if (row.fabric, row.method, row.ranks) == ("slow", BLOCKING, 4))
    line = next(line for line in text.split("\n") if line.split()[:1] == ["SGD"] and "overlapped" not in line)
    assert line.split()[-1] == f"{1e3 * shown.seconds:.3g}"
    table = paths[0].read_text().split("\n")
    assert len(table) == len(rows) + 2 and float(table[1].split(",")[-1]) == rows[0].seconds


def test_a_report_says_what_was_priced_and_what_speaks_against_it() -> None:
    rows, found = whatif(machine(), CONFIG, N, [SLOW], (1, 2), 64), crossovers(machine(), CONFIG, N, [SLOW], (1, 2))
    heading, warning, *texts, picture, table = report.parts(rows, found, [], Path("whatif.png"), ["WARNING: off by half"])
    assert isinstance(heading, Heading) and warning == Paragraph("WARNING: off by half", loud=True)
    lsr1 = "APTS nu = 5, 10, 20 is preset lsr1 with nu local iterations"
    said = [text.text for text in texts if isinstance(text, Paragraph)]
    assert any(text.startswith(f"Priced by the model, not measured: {lsr1}, APTS sweep the preset default;") for text in said)
    for part in (picture, table):
        assert isinstance(part, Picture | Table) and part.caption.endswith(f"{lsr1}, priced by the model and not measured.")
    names = {text.get_text() for text in report.figure(rows, found).legends[0].get_texts()}
    assert {"lower panels: range begins", "lower panels: range ends"} < names
