"""``data verify`` on several ranks: the shards are shared out, one damaged file is everybody's verdict."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import pytest
from mpi4py import MPI

from apts_mpi import data_cli
from apts_mpi.parallel.comm import MpiCommunicator
from apts_mpi.storage.convert import convert

pytestmark = pytest.mark.mpi

WORLD = MPI.COMM_WORLD.Dup()
RANK, SIZE = WORLD.Get_rank(), WORLD.Get_size()


def verdicts(path: Path) -> list[int]:
    """The exit codes of all ranks, on every rank."""
    parser = argparse.ArgumentParser()
    data_cli.add_data_parser(parser.add_subparsers())
    return WORLD.allgather(data_cli.run_data(parser.parse_args(["data", "verify", str(path)]), MpiCommunicator(WORLD)))


def test_all_ranks_share_the_work_and_the_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(WORLD.bcast(tempfile.mkdtemp() if RANK == 0 else None))
    if RANK == 0:
        np.savez(folder / "raw.npz", x=np.arange(60, dtype=np.uint8).reshape(30, 2), y=np.arange(30) % 3)
        convert("npz", folder / "raw.npz", folder / "set", shards=5)
    WORLD.Barrier()
    good, good_text = verdicts(folder / "set"), capsys.readouterr()
    if RANK == 0:
        (folder / "set" / "train-00003-of-00005.h5").write_bytes(b"damaged")
    WORLD.Barrier()
    damaged, damaged_text = verdicts(folder / "set"), capsys.readouterr()
    missing, _ = verdicts(folder / "nothing"), capsys.readouterr()
    assert (good, damaged, missing) == ([0] * SIZE, [2] * SIZE, [2] * SIZE)
    assert ("6 files, 30 samples" in good_text.out) == (RANK == 0)
    assert ("train-00003-of-00005.h5" in damaged_text.err) == (RANK == 3 % SIZE)
