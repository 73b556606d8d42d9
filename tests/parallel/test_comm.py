"""The communicator at 1, 2, 3 and 4 ranks: ``mpiexec -n P python -m pytest tests/parallel``.

No assertion stands between two collectives on one rank alone: ``everywhere`` first agrees on the verdict.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction

import numpy as np
import pytest
import torch
from mpi4py import MPI

from apts_mpi.contracts import Flag
from apts_mpi.parallel import reduce
from apts_mpi.parallel.comm import MpiCommunicator
from apts_mpi.parallel.devices import choose_device, set_threads
from apts_mpi.parallel.handshake import HandshakeError, SetupError, handshake, together
from apts_mpi.parallel.message import LANE
from apts_mpi.partition import block, tree_sum

pytestmark = pytest.mark.mpi

WORLD = MPI.COMM_WORLD.Dup()
RANK, SIZE = WORLD.Get_rank(), WORLD.Get_size()
CPU = torch.device("cpu")
REDUCTIONS = ["auto", "mpi", "tree"]


def everywhere(good: object, what: object = "") -> None:
    """Fail on every rank, naming those where ``good`` is false."""
    bad = [rank for rank, fine in enumerate(WORLD.allgather(bool(good))) if not fine]
    assert not bad, f"wrong on rank {bad}; here: {what}"


@contextmanager
def refused_everywhere(kind: type[Exception], words: str) -> Iterator[None]:
    """Each rank must raise ``kind`` with ``words``."""
    text = ""
    try:
        yield
    except kind as error:
        text = str(error)
    everywhere(words in text and text, text)


def values(rank: int, length: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """What rank ``rank`` adds: known to all ranks, spread over many magnitudes."""
    random = np.random.default_rng([seed, rank, length])
    return torch.from_numpy(random.standard_normal(length) * np.exp2(random.integers(-12, 13, length))).to(dtype)


def tree(length: int, dtype: torch.dtype, ranks: int = SIZE) -> torch.Tensor:
    """Twin: the pairwise tree over rank order."""
    return tree_sum([values(rank, length, dtype) for rank in range(ranks)], torch.add)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("length", [1, 3, 1000, 20_011])
def test_sum(reduction: str, dtype: torch.dtype, length: int) -> None:
    comm = MpiCommunicator(WORLD, reduction)
    message = comm.plan(length, dtype, CPU, ["loss"])
    for _ in range(2):
        message.vector.copy_(values(RANK, length, dtype))
        message.put("loss", [float(RANK)])
        comm.sum_(message)
    if reduction == "mpi":  # its order is the library's own
        twin = sum(values(rank, length, torch.float64) for rank in range(SIZE))
        close = torch.allclose(message.vector.double(), twin, rtol=0, atol=1e-2 if dtype == torch.float32 else 1e-10)
        everywhere(close)
    else:
        everywhere(torch.equal(message.vector, tree(length, dtype)))
    everywhere(message.get("loss") == SIZE * (SIZE - 1) / 2)
    rows = comm.gather(message.vector[:1000].tolist())
    everywhere(all(row == rows[0] for row in rows))


def test_auto_takes_mpi_only_where_all_ranks_see_the_bits_of_the_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = reduce.MpiReducer.__call__
    calls: list[int] = []

    def last_bit(self: reduce.MpiReducer, cells: np.ndarray) -> None:
        if len(cells) < 200:
            return honest(self, cells)
        reduce.TreeReducer(WORLD, 2**30, cells)(cells)  # a library whose order is the tree's ...
        calls.append(len(cells))
        if RANK == SIZE - 1 and len(calls) == 6:  # ... but for one bit, on one rank, in a late call
            cells[150] = np.nextafter(cells[150], np.inf)

    monkeypatch.setattr(reduce.MpiReducer, "__call__", last_bit)
    comm = MpiCommunicator(WORLD, "auto")
    message = comm.plan(200, torch.float32, CPU, ["loss"])
    found = list(comm.reductions.values())
    everywhere(found == (["tree"] if SIZE > 1 else []), found)
    message.vector.copy_(values(RANK, 200, torch.float32))
    comm.sum_(message)
    everywhere(torch.equal(message.vector, tree(200, torch.float32)))


def test_two_ranks_need_no_tree() -> None:
    comm = MpiCommunicator(WORLD, "auto")
    comm.plan(1000, torch.float32, CPU, [])
    everywhere(SIZE != 2 or comm.reductions == {"1000 float32 + scalars none": "mpi"}, comm.reductions)


@pytest.mark.fault(24)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("limit", [7, 1000])
def test_pieces_above_the_count_limit(reduction: str, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    longest = 0
    honest = reduce.MpiReducer.__call__

    class Spy:
        """Measures what goes out in one call."""

        def __getattr__(self, name: str) -> object:
            return getattr(WORLD, name)

        def Allreduce(self, send: object, cells: np.ndarray) -> None:
            nonlocal longest
            longest = max(longest, len(cells))
            WORLD.Allreduce(send, cells)

    def spied(self: reduce.MpiReducer, cells: np.ndarray) -> None:
        self._comm = Spy()
        honest(self, cells)

    monkeypatch.setattr(reduce.MpiReducer, "__call__", spied)
    comm = MpiCommunicator(WORLD)
    comm.configure(reduction, limit)
    message = comm.plan(37, torch.float64, CPU, ["loss"])
    message.vector.copy_(values(RANK, 37, torch.float64))
    message.put("loss", [0.1])
    comm.sum_(message)
    everywhere(longest <= limit and torch.allclose(message.vector, tree(37, torch.float64), rtol=1e-12))
    everywhere(message.get("loss") == float(SIZE * Fraction(0.1)))
    message.put("loss", [0.2])
    comm.sum_(message, vector=False)
    everywhere(longest <= limit and message.get("loss") == float(SIZE * Fraction(0.2)))
    vector = values(RANK, 37, torch.float32)
    comm.broadcast_(vector)
    everywhere(torch.equal(vector, values(0, 37, torch.float32)))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_eight_subdomains_give_the_same_bits_on_1_2_4_ranks(reduction: str) -> None:
    if 8 % SIZE:
        pytest.skip("8 subdomains fall into equal groups on 1, 2 and 4 ranks only")
    if reduction == "mpi":
        pytest.skip("the order is the library's own")
    comm = MpiCommunicator(WORLD, reduction)
    message = comm.plan(5001, torch.float32, CPU, ["loss"])
    mine = block(8, SIZE, RANK)
    message.vector.copy_(tree_sum([values(i, 5001, torch.float32) for i in mine], torch.add))
    message.put("loss", [float(values(i, 1, torch.float64)) for i in mine])
    comm.sum_(message)
    everywhere(torch.equal(message.vector, tree(5001, torch.float32, ranks=8)))
    everywhere(message.get("loss") == float(sum(Fraction(float(values(i, 1, torch.float64))) for i in range(8))))


@pytest.mark.parametrize("vector", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scalars_are_exact(dtype: torch.dtype, vector: bool) -> None:
    comm = MpiCommunicator(WORLD)
    message = comm.plan(3, dtype, CPU, ["loss", "norm"])
    for seed in range(20):
        terms = {rank: [float(x) for x in values(rank, 5, torch.float64, seed) * 2.0 ** (3 * seed)] for rank in range(SIZE)}
        message.put("loss", terms[RANK])
        message.put("norm", [1e20, 1e-15, -1e20])
        comm.sum_(message, vector)
        twin = float(sum(Fraction(x) for row in terms.values() for x in row))
        everywhere(message.get("loss") == twin, f"{message.get('loss')} is not {twin}")
        everywhere(message.get("norm") == float(SIZE * Fraction(1e-15)))


@pytest.mark.fault(1)
def test_one_bad_value_is_seen_by_all_and_only_once() -> None:
    comm = MpiCommunicator(WORLD)
    message = comm.plan(3, torch.float32, CPU, ["loss", "norm"])
    for bad in (math.nan, math.inf, -math.inf, 1e30):
        message.put("loss", [1.0, bad if RANK == SIZE - 1 else 2.0])
        message.put("norm", [1.0])
        if RANK == SIZE - 1:
            message.raise_flag(Flag.SAVE)
        message.raise_flag(Flag.STOP)
        comm.sum_(message)
        everywhere(math.isnan(message.get("loss")) and message.get("norm") == SIZE)
        everywhere((message.count(Flag.SAVE), message.count(Flag.STOP)) == (1, SIZE))
        message.put("loss", [1.0])
        comm.sum_(message, vector=False)
        everywhere(message.get("loss") == SIZE and message.count(Flag.SAVE) == 0 and message.count(Flag.STOP) == 0)


def test_small_message_leaves_the_vector_alone() -> None:
    comm = MpiCommunicator(WORLD)
    message = comm.plan(3, torch.float32, CPU, ["loss"])
    message.vector.fill_(RANK)
    message.put("loss", [1.0])
    comm.sum_(message, vector=False)
    everywhere(message.vector.tolist() == [RANK] * 3)


def test_messages_and_bytes_are_counted() -> None:
    comm = MpiCommunicator(WORLD)
    message = comm.plan(100, torch.float32, CPU, ["a", "b"])
    everywhere((comm.messages, comm.bytes) == (0, 0))  # planning does not count
    for _ in range(3):
        comm.sum_(message)
    comm.sum_(message, vector=False)
    tail = 2 * LANE + len(Flag)
    everywhere((comm.large, comm.small, comm.messages) == (3, 1, 4))
    everywhere(comm.bytes == (4 * (3 * (100 + tail) + tail) if SIZE > 1 else 0), comm.bytes)


def test_bytes_on_the_wire_of_the_tree() -> None:
    """2 (P - 1) / P n words leave each rank, as in Rabenseifner's all-reduce."""
    sent: list[int] = []

    class Spy:
        """Counts the words that leave this rank."""

        def __getattr__(self, name: str) -> object:
            return getattr(WORLD, name)

        def Alltoallv(self, send: list, receive: list) -> None:
            sent.append(sum(count for rank, count in enumerate(send[1][0]) if rank != RANK))
            WORLD.Alltoallv(send, receive)

        def Allgatherv(self, send: np.ndarray, receive: list) -> None:
            sent.append(len(send) * (SIZE - 1))
            WORLD.Allgatherv(send, receive)

    cells = np.ones(1200)
    reduce.TreeReducer(Spy(), 2**30, cells)(cells)
    everywhere(sum(sent) == 2 * (SIZE - 1) * 1200 // SIZE and (cells == SIZE).all(), sent)


def test_broadcast_share_gather() -> None:
    comm = MpiCommunicator(WORLD)
    vector = values(RANK, 501, torch.float64).requires_grad_()
    comm.broadcast_(vector)
    everywhere(torch.equal(vector, values(0, 501, torch.float64)))
    everywhere(comm.share(f"Größe {RANK}" * 100) == "Größe 0" * 100)
    everywhere(comm.share("" if RANK == 0 else "x") == "")
    rows = comm.gather([RANK + i / 3 for i in range(RANK)] + [math.inf])
    everywhere(rows == [[rank + i / 3 for i in range(rank)] + [math.inf] for rank in range(SIZE)], rows)
    everywhere(comm.gather_text("é" * RANK) == ["é" * rank for rank in range(SIZE)])
    comm.barrier()


def test_agree_names_the_minority_on_every_rank() -> None:
    comm = MpiCommunicator(WORLD)
    comm.agree("config", "same")
    if SIZE == 1:
        return
    text = ""
    try:
        comm.agree("config", "eta1 = 0.5" if RANK == SIZE - 1 else "eta1 = 0.25")
    except HandshakeError as error:
        text = str(error)
    everywhere(f"{SIZE - 1} of {SIZE} ranks have 'eta1 = 0.25', but not rank {SIZE - 1} on {WORLD.bcast(comm.host)}" in text, text)
    everywhere(len(set(WORLD.allgather(text))) == 1)


@pytest.mark.fault(48)
def test_handshake_finds_another_version_on_one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    comm = MpiCommunicator(WORLD)
    handshake(comm, {"config": "x"})
    if SIZE == 1:
        return
    if RANK == 1:
        monkeypatch.setattr("apts_mpi.parallel.handshake.version", lambda name: "0.1")
    with refused_everywhere(HandshakeError, "version of torch differs between the ranks"):
        handshake(comm, {"config": "x"})


def test_handshake_finds_an_item_that_one_rank_lacks() -> None:
    comm = MpiCommunicator(WORLD)
    if SIZE > 1:
        with refused_everywhere(HandshakeError, "handshake items differs"):
            handshake(comm, {"config": "x"} if RANK else {"config": "x", "layout": "y"})


def test_what_fails_on_one_rank_is_told_by_all() -> None:
    def read() -> int:
        if RANK == SIZE - 1:
            raise OSError("shard 7 is missing")
        return RANK

    comm = MpiCommunicator(WORLD)
    everywhere(together(comm, lambda: RANK + 1) == RANK + 1)
    named = f"rank {SIZE - 1} on " if SIZE > 1 else ""
    with refused_everywhere(SetupError, named):
        together(comm, read)
    with refused_everywhere(SetupError, "shard 7 is missing"):
        together(comm, read)


def test_ranks_must_plan_the_same_message() -> None:
    comm = MpiCommunicator(WORLD)
    if SIZE > 1:
        with refused_everywhere(HandshakeError, "message differs between the ranks"):
            comm.plan(10 + (RANK == 1), torch.float32, CPU, ["loss"])


def test_refusals() -> None:
    comm = MpiCommunicator(WORLD)
    for tensor in (torch.zeros(2, 2), torch.zeros(4, 2)[:, 0], torch.zeros(3, dtype=torch.bfloat16)):
        with refused_everywhere(ValueError, "only 1-D contiguous"):
            comm.broadcast_(tensor)
    with refused_everywhere(ValueError, "float16"):
        comm.plan(3, torch.float16, CPU, [])
    with refused_everywhere(TypeError, "made by plan"):
        comm.sum_(torch.zeros(3))  # type: ignore[arg-type]
    message = comm.plan(3, torch.float32, CPU, [])
    message.vector = torch.zeros(3)
    with refused_everywhere(ValueError, "was replaced"):
        comm.sum_(message)
    with refused_everywhere(ValueError, "auto, mpi or tree"):
        MpiCommunicator(WORLD, "ring")
    with refused_everywhere(ValueError, "count_limit"):
        MpiCommunicator(WORLD, count_limit=0)


def test_place_on_the_node() -> None:
    comm = MpiCommunicator(WORLD)
    everywhere((comm.local_rank, comm.local_size) == (RANK, SIZE))
    everywhere(choose_device("cpu", comm).type == "cpu")
    before = torch.get_num_threads()
    found = set_threads(0, comm, {})
    torch.set_num_threads(before)
    everywhere(1 <= found <= before)


@pytest.mark.fault(23)
def test_fewer_numbers_than_ranks() -> None:
    for reduction in ("auto", "tree"):
        comm = MpiCommunicator(WORLD, reduction)
        message = comm.plan(1, torch.float32, CPU, [])
        message.vector.fill_(1.0)
        comm.sum_(message)
        everywhere(message.vector.item() == SIZE)
