"""Messages that stay on their device, at 1, 2, 3 and 4 ranks; MPI sums CPU tensors in the part of device memory, NCCL is played by MPI."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from mpi4py import MPI
from test_comm import CPU, RANK, SIZE, WORLD, everywhere, refused_everywhere, tree, values
from torch.cuda import nccl

from apts_mpi.bench import transports
from apts_mpi.bench.measure import Plan
from apts_mpi.contracts import Flag
from apts_mpi.parallel import transport
from apts_mpi.parallel.comm import MpiCommunicator
from apts_mpi.parallel.handshake import HandshakeError, SetupError
from apts_mpi.parallel.transport import choose_transport

pytestmark = pytest.mark.mpi

GPU = torch.device("cuda", 0)

@pytest.mark.parametrize("limit", [3, 2**30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_sum_on_the_device_is_that_of_the_ranks_with_exact_scalars_and_flags(dtype: torch.dtype, limit: int) -> None:
    comm = MpiCommunicator(WORLD, "mpi", limit, "device")
    message = comm.plan(17, dtype, CPU, ["loss", "norm"])
    assert len(message.host) == len(message._tail) and not message.staged  # nothing of the vector is kept on the host
    for turn in range(3):  # lanes and flags of the turn before are gone
        message.vector.copy_(values(RANK, 17, dtype, seed=turn))
        message.put("loss", [0.1 * (RANK + 1), 1e-9])
        if RANK == turn % SIZE:
            message.raise_flag(Flag.STOP)
        comm.sum_(message)
        expected = sum(values(rank, 17, torch.float64, seed=turn) for rank in range(SIZE))
        scale = sum(values(rank, 17, torch.float64, seed=turn).abs() for rank in range(SIZE))
        near = ((message.vector.double() - expected).abs() <= SIZE * torch.finfo(dtype).eps * scale).all()
        everywhere(near, message.vector)

        everywhere(abs(message.get("loss") - (0.05 * SIZE * (SIZE + 1) + 1e-9 * SIZE)) < 1e-15 * SIZE and message.terms("loss") == 2 * SIZE)
        everywhere(message.count(Flag.STOP) == 1)
    assert list(comm.reductions.values()) == (["mpi on the device"] if SIZE > 1 else [])

def test_scalars_alone_go_by_the_host_and_leave_the_vector_as_it_is() -> None:
    comm = MpiCommunicator(WORLD, "mpi", transport="device")
    message = comm.plan(5, torch.float32, CPU, ["loss"])
    message.vector.fill_(float(RANK))
    message.put("loss", [1.0])
    comm.sum_(message, vector=False)
    everywhere(message.get("loss") == SIZE and message.vector.tolist() == [RANK] * 5)
    assert comm.bytes == (message.nbytes(vector=False) if SIZE > 1 else 0) < message.nbytes(vector=True)

def test_device_and_host_count_the_same_bytes_and_messages() -> None:
    counted = []
    for name in ("host", "device"):
        comm = MpiCommunicator(WORLD, "mpi", transport=name)
        message = comm.plan(9, torch.float64, CPU, ["loss"])
        message.put("loss", [1.0])
        comm.sum_(message)
        counted.append((comm.bytes, comm.messages))
    assert counted[0] == counted[1]

def test_nccl_is_linked_once_by_mpi_and_sums_behind_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """The identifier of rank 0 reaches all; one link serves every message."""
    linked: list[tuple[int, bytes, int]] = []

    def init_rank(size: int, key: bytes, rank: int) -> str:
        linked.append((size, key, rank))
        return "link"

    def all_reduce(tensors: list[torch.Tensor], comms: list[str]) -> None:
        assert comms == ["link"]
        WORLD.Allreduce(MPI.IN_PLACE, tensors[0])

    monkeypatch.setattr(nccl, "unique_id", lambda: bytes([RANK + 1] * 128))
    monkeypatch.setattr(nccl, "init_rank", init_rank)
    monkeypatch.setattr(nccl, "all_reduce", all_reduce)
    comm = MpiCommunicator(WORLD, transport="nccl")
    for length in (4, 8):
        message = comm.plan(length, torch.float32, CPU, ["loss"])
        message.vector.fill_(2.0**RANK)
        message.put("loss", [0.5])
        comm.sum_(message)
        everywhere(message.vector.tolist() == [2.0**SIZE - 1] * length and message.get("loss") == 0.5 * SIZE, message.vector)
    everywhere(linked == ([(SIZE, bytes([1] * 128), RANK)] if SIZE > 1 else []), linked)

def _link(monkeypatch: pytest.MonkeyPatch, **stands_in: Any) -> MpiCommunicator:
    usual = {"unique_id": lambda: bytes(128), "init_rank": lambda size, key, rank: "link", "all_reduce": lambda tensors, comms: None}
    for name, function in (usual | stands_in).items():
        monkeypatch.setattr(nccl, name, function)
    return MpiCommunicator(WORLD, transport="nccl")


def refuse(*words: object) -> bytes:
    raise RuntimeError("no network interface")


class Waiting:
    """``init_rank`` of NCCL where another rank does not come; not for ever."""

    def __init__(self) -> None:
        self.entered = False

    def __call__(self, size: int, key: bytes, rank: int) -> str:
        self.entered = True
        time.sleep(0.5)
        raise RuntimeError("waited in vain")


@pytest.mark.skipif(SIZE == 1, reason="nothing is linked")
@pytest.mark.parametrize("step", ["unique_id", "wait_for"])
def test_a_rank_that_fails_alone_fails_before_the_others_wait_for_it(monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """It has no identifier, or its device has had an error: all are told, with the way out."""
    failing, waiting = 0 if step == "unique_id" else SIZE - 1, Waiting()
    comm = _link(monkeypatch, init_rank=waiting)
    if failing == RANK:
        monkeypatch.setattr(nccl if step == "unique_id" else transport, step, refuse)
    with refused_everywhere(SetupError, "no network interface; set comm.transport to host"):
        comm.plan(4, torch.float32, CPU, [])
    everywhere(not waiting.entered)


@pytest.mark.skipif(SIZE == 1, reason="nothing is linked")
def test_a_rank_that_nccl_refuses_says_so_itself(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The others may wait for it in NCCL and never hear."""
    comm = _link(monkeypatch, init_rank=refuse if RANK == SIZE - 1 else Waiting())
    with refused_everywhere(SetupError, "no network interface; set comm.transport to host"):
        comm.plan(4, torch.float32, CPU, [])
    said = capsys.readouterr().err
    why = "no network interface" if RANK == SIZE - 1 else "waited in vain"
    everywhere(said == f"rank {RANK} on {comm.host}: NCCL cannot link the ranks: {why}\n", said)


@pytest.mark.skipif(SIZE == 1, reason="nothing is summed")
def test_a_sum_that_is_none_is_found_when_a_message_is_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    comm = _link(monkeypatch)  # it adds nothing
    with refused_everywhere(HandshakeError, "a sum by nccl is no sum"):
        comm.plan(4, torch.float32, CPU, [])


@pytest.mark.skipif(SIZE == 1, reason="one rank agrees with itself")
def test_ranks_that_hold_other_bits_are_found_when_a_message_is_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    def almost(tensors: list[torch.Tensor], comms: list[str]) -> None:
        WORLD.Allreduce(MPI.IN_PLACE, tensors[0])
        tensors[0].mul_(1 + torch.finfo(torch.float32).eps * (SIZE - 1 == RANK))

    comm = _link(monkeypatch, all_reduce=almost)
    with refused_everywhere(HandshakeError, "sum by nccl"):
        comm.plan(400, torch.float32, CPU, [])


def test_mpi_is_tried_outside_of_the_ranks_that_the_launcher_started() -> None:
    everywhere(RANK != 0 or transport.probe("cpu") == "")


def test_a_sum_in_parts_needs_the_host() -> None:
    comm = MpiCommunicator(WORLD, "mpi", transport="device")
    message = comm.plan(5, torch.float32, CPU, [])
    with refused_everywhere(ValueError, "start_sum"):
        comm.start_sum(message, 0, 2)

@pytest.mark.parametrize(("reduction", "name"), [("tree", "device"), ("tree", "nccl"), ("auto", "pigeon")])
def test_what_cannot_be_is_refused(reduction: str, name: str) -> None:
    with refused_everywhere(ValueError, name):
        MpiCommunicator(WORLD, reduction, transport=name)

def test_a_transport_is_chosen_by_all_ranks_together(monkeypatch: pytest.MonkeyPatch) -> None:
    comm = MpiCommunicator(WORLD)
    assert choose_transport("auto", comm, CPU) == choose_transport("host", comm, GPU) == ("host", "")
    if SIZE == 1:  # nothing is sent
        assert choose_transport("nccl", comm, CPU) == ("host", "")
        return
    with refused_everywhere(HandshakeError, "rank 0: it computes on a CPU"):
        choose_transport("nccl", comm, CPU)
    with refused_everywhere(HandshakeError, "run.share_gpu"):
        choose_transport("nccl", comm, GPU, share_gpu=True)
    monkeypatch.setattr(transport, "probe", lambda where: "")
    everywhere(choose_transport("auto", comm, GPU) == choose_transport("device", comm, GPU) == ("device", ""))
    monkeypatch.setattr(transport, "probe", lambda where: "it crashed" if SIZE - 1 == RANK else "")
    everywhere(choose_transport("auto", comm, GPU) == ("host", f"comm.transport = auto is host, rank {SIZE - 1}: it crashed"))
    with refused_everywhere(HandshakeError, f"rank {SIZE - 1}: it crashed; set comm.transport to host"):
        choose_transport("device", comm, GPU)

@pytest.mark.skipif(SIZE == 1, reason="nothing is linked")
def test_a_transport_that_cannot_be_linked_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transports, "lacking", lambda *asked: "")
    comm = _link(monkeypatch, init_rank=refuse if RANK == SIZE - 1 else Waiting())
    names, missing = transports.offered(comm, CPU, False)
    everywhere(names == ["host", "device"] and comm.transport == "host", names)
    everywhere(len(missing) == 1 and missing[0].startswith("without nccl: ") and "no network interface" in missing[0], missing)


@pytest.mark.skipif(SIZE == 1, reason="a sum over one rank takes no time")
def test_the_transports_are_timed_in_turn_and_one_is_recommended() -> None:
    comm = MpiCommunicator(WORLD)
    found: dict[str, Any] = transports.measure(comm, CPU, [64, 4096], ["host", "device"], Plan(15, 1))
    everywhere([result["bytes"] for result in found["results"]] == [64, 4096] and found["recommended"] in ("host", "device"))
    everywhere(comm.transport == "host" and tree(3, torch.float32).shape == (3,))
    shown = transports.lines(found | {"missing": ["without nccl: it computes on a CPU"]})
    everywhere(len(shown) == 4 and shown[-1].endswith(f"--comm.transport {found['recommended']}"), shown)
