"""Checked sums between real ranks: true ones pass, under every reduction, and a wrong one is seen where it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from mpi4py import MPI

from apts_mpi.parallel.checked import CheckedCommunicator
from apts_mpi.parallel.comm import MpiCommunicator
from apts_mpi.parallel.handshake import ReductionError

pytestmark = pytest.mark.mpi

WORLD = MPI.COMM_WORLD.Dup()
RANK, SIZE = WORLD.Get_rank(), WORLD.Get_size()
CPU = torch.device("cpu")


def planned(reduction: str, n: int = 20_011, dtype: torch.dtype = torch.float32) -> tuple[CheckedCommunicator, Any]:
    comm = CheckedCommunicator(MpiCommunicator(WORLD, reduction))
    return comm, comm.plan(n, dtype, CPU, ["loss"])


def fill(message: Any, seed: int) -> None:
    random = np.random.default_rng([seed, RANK])
    values = random.standard_normal(message.n_params) * np.exp2(random.integers(-10, 11, message.n_params))
    message.vector.copy_(torch.from_numpy(values))
    message.put("loss", [1.0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("reduction", ["auto", "mpi", "tree"])
def test_true_sums_pass_with_the_bits_of_unchecked_ones(reduction: str, dtype: torch.dtype) -> None:
    comm, message = planned(reduction, dtype=dtype)
    plain = MpiCommunicator(WORLD, reduction)
    twin = plain.plan(20_011, dtype, CPU, ["loss"])
    same = True
    for seed in range(10):
        fill(message, seed)
        fill(twin, seed)
        if seed % 2:
            for start in range(0, 20_011, 5000):
                comm.start_sum(message, start, min(start + 5000, 20_011))
                plain.start_sum(twin, start, min(start + 5000, 20_011))
            comm.finish_sum(message)
            plain.finish_sum(twin)
        else:
            comm.sum_(message)
            plain.sum_(twin)
        same &= torch.equal(message.vector, twin.vector) and message.get("loss") == SIZE
        message.put("loss", [1.0])
        comm.sum_(message, vector=False)
    assert all(WORLD.allgather(same)) or reduction == "mpi"  # whose order may depend on the length


@pytest.mark.skipif(SIZE == 1, reason="one rank sums nothing")
@pytest.mark.fault(58)
@pytest.mark.parametrize("where", ["one rank", "all ranks"])
@pytest.mark.parametrize("fault", ["lost", "doubled", "exponent", "sign"])
def test_a_wrong_sum_is_seen_where_it_is(where: str, fault: str) -> None:
    comm, message = planned("tree")
    honest = message.reduce

    def wrong(cells: np.ndarray[Any, Any]) -> None:
        mine = cells[:20_011].copy()
        honest(cells)
        if where == "one rank" and RANK != SIZE - 1:
            return
        i = int(np.argmax(np.abs(cells[:20_011])))
        if fault in ("lost", "doubled"):
            cells[:20_011] += mine * (1 if fault == "doubled" else -1)
        else:
            cells.view(np.uint32)[i] ^= np.uint32(1 << (25 if fault == "exponent" else 31))

    message.reduce = wrong
    fill(message, 1)
    text = ""
    try:
        comm.sum_(message)
    except ReductionError as error:
        text = str(error)
    seen = WORLD.allgather(bool(text) and f"on rank {RANK} on " in text)
    assert seen == [where == "all ranks" or rank == SIZE - 1 for rank in range(SIZE)], text
