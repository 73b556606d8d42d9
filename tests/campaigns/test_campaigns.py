"""The campaigns in the size of a normal run; with APTS_NIGHTLY=1 in their full size, which takes about two hours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.append(str(HERE))
sys.path.append(str(HERE.parent / "faults"))
from recording import mpi_of  # noqa: E402

NIGHTLY = os.environ.get("APTS_NIGHTLY") == "1"
MPI = mpi_of(sys.executable)
HOURS = 3600.0
Property = Callable[[str, object], None]

needs_mpi = pytest.mark.skipif(not MPI, reason="no mpiexec beside the interpreter or on PATH")
long_enough = pytest.mark.timeout(2 * HOURS if NIGHTLY else 240)


def run(name: str, tmp_path: Path, record_property: Property, cases: int, limit: float, *words: str) -> str:
    """A campaign of so many cases, nightly of its own number, not measured for coverage; its last line."""
    out = tmp_path / f"{name}.json"
    size = [] if NIGHTLY else ["--cases", str(cases)]
    done = subprocess.run(
        [sys.executable, str(HERE / f"{name}.py"), "--out", str(out), *size, *words], capture_output=True, text=True,
        timeout=2 * HOURS if NIGHTLY else limit, env={name: text for name, text in os.environ.items() if not name.startswith("COVERAGE")},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-20_000:]
    record_property("slowest_fault_s", json.loads(out.read_text())["slowest_fault_s"])
    return done.stdout.splitlines()[-1]


@needs_mpi
@long_enough
@pytest.mark.fault(38, 39, 68)
def test_killed_runs_end_as_untouched_ones(tmp_path: Path, record_property: Property) -> None:
    last = run("kill", tmp_path, record_property, 20 if MPI == "mpich" else 6, 220)
    assert "end as the untouched ones" in last


@long_enough
@pytest.mark.fault(39)
def test_a_writer_killed_anywhere_leaves_a_whole_checkpoint(tmp_path: Path, record_property: Property) -> None:
    assert "a whole checkpoint found after each" in run("cuts", tmp_path, record_property, 200, 60)


@needs_mpi
@long_enough
@pytest.mark.skipif(MPI != "mpich" and not NIGHTLY, reason="the same in-process work under every MPI")
def test_nothing_is_held_for_ever(tmp_path: Path, record_property: Property) -> None:
    last = run("soak", tmp_path, record_property, 2000, 220, *([] if NIGHTLY else ["--length", "200"]))
    assert f": {100_000 if NIGHTLY else 2000} iterations on 2 ranks" in last


@needs_mpi
@long_enough
@pytest.mark.fault(57)
@pytest.mark.parametrize("ranks", [2, 3, 4] if NIGHTLY else [2, 3])
def test_turned_bits_of_theta_are_found_and_named(tmp_path: Path, record_property: Property, ranks: int) -> None:
    last = run("flips", tmp_path, record_property, (16 if MPI == "mpich" else 8) if ranks == 3 else 6, 200, f"--ranks={ranks}")
    assert f"found on {ranks} ranks" in last


@needs_mpi
@long_enough
@pytest.mark.fault(42)
def test_a_vanished_rank_is_no_success(tmp_path: Path, record_property: Property) -> None:
    last = run("vanish", tmp_path, record_property, 10 if MPI == "mpich" else 5, 200)
    assert "0 false successes" in last


@long_enough
@pytest.mark.fault(59, 66)
@pytest.mark.skipif(MPI == "openmpi" and not NIGHTLY, reason="the same without MPI")
def test_a_failing_disk_costs_nothing_that_was_saved(tmp_path: Path, record_property: Property) -> None:
    assert "faults of the disk survived" in run("disk", tmp_path, record_property, 24, 120)
