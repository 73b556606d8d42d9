"""Between a device and the wire, simulated: a tensor that says it is on a GPU, and a stream so slow that it works only when waited for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from mpi4py import MPI
from test_training import everywhere

from apts_mpi.parallel.comm import MpiCommunicator

pytestmark = pytest.mark.mpi

WORLD = MPI.COMM_WORLD.Dup()
RANK, SIZE = WORLD.Get_rank(), WORLD.Get_size()
GPU = torch.device("cuda", 0)


class OnDevice(torch.Tensor):
    """Host memory that claims to be a GPU's: whoever asks for its address is an error."""

    @property
    def device(self) -> torch.device:
        return GPU

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("a device pointer was asked for")

    numpy = data_ptr = __array__ = __dlpack__ = _refuse
    __cuda_array_interface__ = property(_refuse)

    def cpu(self) -> torch.Tensor:
        return self.as_subclass(torch.Tensor).clone()

    def detach(self) -> OnDevice:
        return self


class Wire:
    """An MPI communicator that notes the buffers it is given and when."""

    def __init__(self, events: list[str]) -> None:
        self.events = events

    def __getattr__(self, name: str) -> Any:
        inner = getattr(WORLD, name)
        if name not in ("Allreduce", "Alltoallv", "Allgatherv", "Bcast", "Iallreduce"):
            return inner

        def call(*buffers: Any, **keys: Any) -> Any:
            for buffer in buffers:
                part = buffer[0] if isinstance(buffer, list) else buffer
                assert isinstance(part, np.ndarray | OnDevice) or part == MPI.IN_PLACE, f"{name} was given a {type(part).__name__}"
            on_device = any(isinstance(buffer, OnDevice) for buffer in buffers)
            self.events.append(f"{name} on the device" if on_device else name)
            return inner(*(buffer.as_subclass(torch.Tensor) if isinstance(buffer, OnDevice) else buffer for buffer in buffers), **keys)

        return call


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happened, in order, to the one stream there is."""
    noted: list[str] = []
    late: list[tuple[torch.Tensor, torch.Tensor]] = []
    zeros, copy = torch.zeros, torch.Tensor.copy_

    def planned(*size: Any, device: Any = None, pin_memory: bool = False, **keys: Any) -> torch.Tensor:
        made = zeros(*size, **keys)
        noted.extend(["pinned"] if pin_memory else [])
        return made.as_subclass(OnDevice) if device is not None and torch.device(device).type == "cuda" else made

    def copied(self: torch.Tensor, other: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
        if isinstance(self, OnDevice):
            noted.append("to device")
            copy(self.as_subclass(torch.Tensor), other)
            return self
        if isinstance(other, OnDevice):
            noted.append("to host")
            late.append((self, other.as_subclass(torch.Tensor)))
            return self
        return copy(self, other, non_blocking)

    class Stream:
        def synchronize(self) -> None:
            noted.append("synchronise")
            while late:
                copy(*late.pop(0))

    monkeypatch.setattr(torch, "zeros", planned)
    monkeypatch.setattr(torch.Tensor, "copy_", copied)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream())
    return noted


@pytest.mark.fault(51)
@pytest.mark.fault(52)
@pytest.mark.parametrize("reduction", ["mpi", "tree"])
def test_a_device_vector_is_copied_waited_for_and_then_summed_on_the_host(events: list[str], reduction: str) -> None:
    """MPI gets arrays of the host alone, and none before the stream that fills them is at rest."""
    comm = MpiCommunicator(Wire(events), reduction)  # type: ignore[arg-type]
    message = comm.plan(7, torch.float32, GPU, ["loss"])
    assert isinstance(message.vector, OnDevice) and "pinned" in events
    for _ in range(2):
        message.vector.as_subclass(torch.Tensor).fill_(RANK + 1.0)
        message.put("loss", [1.0])
        events.clear()
        comm.sum_(message)
        seen, sums = list(events), {"mpi": ["Allreduce"], "tree": ["Alltoallv", "Allgatherv"]}[reduction] if SIZE > 1 else []
        everywhere(seen == ["to host", "synchronise", *sums, "to device"], seen)
        total = SIZE * (SIZE + 1) / 2
        everywhere(message.vector.as_subclass(torch.Tensor).tolist() == [total] * 7 and message.get("loss") == SIZE)


@pytest.mark.fault(52)
def test_mpi_is_given_device_memory_only_after_the_stream_that_fills_it_is_at_rest(events: list[str]) -> None:
    """And scalars are read only after they have come back to the host."""
    comm = MpiCommunicator(Wire(events), "mpi", transport="device")  # type: ignore[arg-type]
    message = comm.plan(7, torch.float32, GPU, ["loss"])
    for _ in range(2):
        message.vector.as_subclass(torch.Tensor).fill_(RANK + 1.0)
        message.put("loss", [1.0])
        events.clear()
        comm.sum_(message)
        seen, sums = list(events), ["synchronise", "Allreduce on the device"] if SIZE > 1 else []
        everywhere(seen == ["to device", *sums, "to host", "synchronise"], seen)
        total = SIZE * (SIZE + 1) / 2
        everywhere(message.vector.as_subclass(torch.Tensor).tolist() == [total] * 7 and message.get("loss") == SIZE)


@pytest.mark.fault(51)
def test_a_device_vector_is_broadcast_from_the_host(events: list[str]) -> None:
    comm = MpiCommunicator(Wire(events))  # type: ignore[arg-type]
    vector = torch.full((5,), float(RANK)).as_subclass(OnDevice)
    comm.broadcast_(vector)
    everywhere(vector.as_subclass(torch.Tensor).tolist() == [0.0] * 5 and "Bcast" in events, events)


@pytest.mark.fault(52)
def test_a_sum_that_does_not_wait_is_noticed(events: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the wait the slow stream has not filled the host's buffer: the check above can fail."""

    def hasty(host: torch.Tensor, vector: torch.Tensor) -> None:
        host.copy_(vector, non_blocking=True)

    monkeypatch.setattr("apts_mpi.parallel.message.to_host_", hasty)
    comm = MpiCommunicator(Wire(events), "mpi")  # type: ignore[arg-type]
    message = comm.plan(3, torch.float32, GPU, ["loss"])
    message.vector.as_subclass(torch.Tensor).fill_(1.0)
    message.put("loss", [1.0])
    events.clear()
    comm.sum_(message)
    everywhere("synchronise" not in events and message.vector.as_subclass(torch.Tensor).tolist() == [0.0] * 3, events)
