"""Samples that stay on the host: the same bits as resident ones; a buffer is not filled again before it has been copied."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch

from apts_mpi import train
from apts_mpi.problem import staging
from apts_mpi.problem.samples import Samples
from apts_mpi.problem.share import Share
from apts_mpi.problem.staging import Staging, fits

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize("ready_bytes", [0, 2**20])
def test_what_the_model_sees_is_the_same_wherever_samples_lie(tokens: bool, ready_bytes: int) -> None:
    inputs, targets = torch.randint(0, 255, (40, 3, 4), dtype=torch.uint8), torch.arange(40)
    scale, shift = torch.rand(4), torch.rand(4)
    seen = []
    for place in ("device", "host"):
        ranges = [range(10, 30), range(50, 70)]
        samples = Samples(
            ranges, inputs, targets, dtype=torch.float32, device=CPU, scale=scale, shift=shift, tokens=tokens, place=place
        )
        share = Share(samples, ready_bytes)
        pieces = []
        for numbers in (torch.arange(12, 28), torch.tensor([69, 11, 50, 29])):
            share.select(samples.rows(numbers.numpy()))
            pieces += [share.take(range(0, 3)), share.take(range(3, 4)), samples.take(slice(5, 9)), samples.few(3).take(slice(None))]
        seen.append(pieces)
    for ours, theirs in zip(*seen, strict=True):
        assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(ours, theirs, strict=True))


def test_pieces_that_were_sent_keep_their_values() -> None:
    values = torch.randn(50, 2)
    sender = Staging(values, CPU)
    pieces = [sender.send(slice(start, start + 10)) for start in range(0, 50, 10)]
    assert torch.equal(torch.cat(pieces), values)


class Device:
    """A GPU whose copies happen as late as they may: when somebody waits for what stands behind them."""

    def __init__(self) -> None:
        self.late: list[Callable[[], object]] = []
        self.done = self.most = 0

    def flush(self, until: int) -> None:
        while self.done < until:
            self.late[self.done]()
            self.done += 1


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Device:
    device = Device()
    empty, copy = torch.empty, torch.Tensor.copy_

    class Event:
        def record(self, stream: object) -> None:
            self.behind = len(device.late)

        def synchronize(self) -> None:
            device.flush(self.behind)

    class Stream:
        def __init__(self, where: object = None) -> None: ...

        def wait_stream(self, other: object) -> None: ...

    @contextmanager
    def within(stream: Stream) -> Iterator[None]:
        yield

    def made(shape: tuple[int, ...], dtype: torch.dtype, device: object = None, pin_memory: bool = False) -> torch.Tensor:
        return empty(shape, dtype=dtype)

    def copied(self: torch.Tensor, other: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
        if not non_blocking:
            return copy(self, other)
        device.late.append(lambda: copy(self, other))
        device.most = max(device.most, len(device.late) - device.done)
        return self

    for name, stand_in in {"Event": Event, "Stream": Stream, "stream": within, "current_stream": Stream}.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(torch, "empty", made)
    monkeypatch.setattr(torch.Tensor, "copy_", copied)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, stream: None)
    return device


@pytest.mark.parametrize("by_number", [False, True])
def test_a_buffer_is_filled_again_only_after_its_copy_and_two_pieces_are_on_the_device(gpu: Device, by_number: bool) -> None:
    values = torch.arange(60.0).reshape(20, 3)
    sender = Staging(values, GPU)
    parts = [slice(start, min(start + 3, 20)) for start in range(0, 20, 3)]
    pieces = [sender.send(torch.arange(part.start, part.stop) if by_number else part) for part in parts]
    gpu.flush(len(parts))
    assert torch.equal(torch.cat(pieces), values)
    assert gpu.most == 2


@pytest.mark.parametrize(("place", "nbytes", "there"), [("auto", 50, True), ("auto", 51, False), ("device", 999, True), ("host", 1, False)])
def test_samples_go_to_a_gpu_if_half_of_its_free_memory_holds_them(
    place: str, nbytes: int, there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging.torch.cuda, "mem_get_info", lambda device: (100, 1000))
    assert fits(nbytes, place, GPU) is there
    assert fits(nbytes, place, CPU) is (place != "host")


@pytest.mark.parametrize(("nbytes", "there"), [(12, True), (13, False)])
def test_ranks_that_share_a_gpu_share_its_free_memory(nbytes: int, there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging.torch.cuda, "mem_get_info", lambda device: (100, 1000))
    assert fits(nbytes, "auto", GPU, sharers=4) is there


def test_tensors_may_stay_on_the_host() -> None:
    inputs, targets = torch.rand(30, 4), torch.arange(30) % 3
    ends = []
    for place in ("device", "host"):
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 3)
        ends.append(train(model, inputs, targets, data={"place": place}, stop={"epochs": 2}).theta)
    assert torch.equal(*ends)
