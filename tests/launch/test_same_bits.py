"""The same run gives the same bits: on 1, 2, 4 and 8 ranks of the MPI at hand, again and again, in this process and in others.

Every number of ranks is compared with a run without a launcher, into which no MPI comes: so all MPIs give the same bits.
"""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import pytest
import torch
from same_bits import MPIEXEC, OPTIONS, make_data, theta_hash

from apts_mpi import run_training
from apts_mpi.parallel.serial import SerialCommunicator
from apts_mpi.settings import from_options, resolve

LIMIT = 60.0  # s for 8 ranks on two cores that others use too; alone it takes 5 to 15, and minutes if waiting takes a core


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bits")
    make_data(folder)
    return folder


@pytest.fixture(scope="module")
def serial(place: Path) -> str:
    """The hash of theta without a launcher."""
    return theta_hash(place, 0)


@pytest.mark.skipif(MPIEXEC is None, reason="no mpiexec beside the interpreter or on PATH")
@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_any_number_of_ranks_gives_the_same_bits(place: Path, serial: str, ranks: int) -> None:
    began = time.monotonic()
    assert theta_hash(place, ranks) == serial
    assert time.monotonic() - began < LIMIT


def test_twenty_runs_in_one_process_and_two_in_others_give_the_same_bits(
    place: Path, serial: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever was trained, allocated and drawn before."""
    monkeypatch.chdir(place)
    words = OPTIONS.split()
    options = [(name.removeprefix("--"), value) for name, value in zip(words[::2], words[1::2], strict=True)]
    given = [*options, ("data.path", "set"), ("run.dir", str(tmp_path / "run")), ("run.monitor", "none")]
    config = resolve(from_options(given)).config
    found = set()
    for run in range(20):
        torch.manual_seed(run)
        kept = torch.rand(1000 * run + 1)  # other addresses, another state of the generator
        result = run_training(config, SerialCommunicator())
        found.add(hashlib.sha256(result.theta.numpy().tobytes()).hexdigest())
        assert len(kept) == 1000 * run + 1
    assert found == {serial}
    for run in (1, 2):
        (tmp_path / str(run)).mkdir()
        (tmp_path / str(run) / "set").symlink_to(place / "set")
        assert theta_hash(tmp_path / str(run), 0) == serial
