"""The larger networks on 1, 2, 3 and 4 ranks: as many subdomains on any number of ranks give the same bits."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import pytest
import torch
from mpi4py import MPI

sys.path.append(str(Path(__file__).parents[1] / "problem"))
sys.path.append(str(Path(__file__).parents[1] / "train"))
from network_cases import NAMES, case
from train_cases import settings

from apts_mpi import train
from apts_mpi.parallel.comm import MpiCommunicator
from apts_mpi.parallel.serial import SerialCommunicator

pytestmark = pytest.mark.mpi

WORLD = MPI.COMM_WORLD.Dup()
SIZE = WORLD.Get_size()


@pytest.mark.skipif(SIZE & (SIZE - 1) != 0, reason="the tree over subdomains is cut evenly by powers of two alone")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("preset", ["default", "lsr1"])
def test_same_bits_for_any_number_of_ranks(name: str, preset: str) -> None:
    dtype = "float64" if name == "poisson" else "float32"
    this, found = case(name, count=8, dtype=getattr(torch, dtype)), []
    local = {"iters": 2} if preset == "lsr1" else {"chunks_min": 2, "chunks_max": 2}
    config = settings(preset, model={"dtype": dtype}, solver={"subdomains": 4}, local=local, stop={"epochs": 2})
    for comm in (MpiCommunicator(WORLD), SerialCommunicator()):
        found.append(train(copy.deepcopy(this.module), this.inputs, this.targets, loss=this.loss, config=config, comm=comm))
    ours, serial = found
    good = ours.theta.numpy().tobytes() == serial.theta.numpy().tobytes() and repr(ours.steps) == repr(serial.steps)
    falls = serial.loss < serial.steps[0].loss
    assert all(WORLD.allgather(good and falls)), (good, serial.steps[0].loss, serial.loss)
