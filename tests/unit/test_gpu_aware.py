"""Whether MPI can sum on a device, tried in another process; and which transport is recommended."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from apts_mpi.bench.transports import recommended
from apts_mpi.parallel import transport
from apts_mpi.parallel.transport import probe


def test_mpi_sums_on_a_cpu() -> None:
    assert probe("cpu") == ""


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_told_in_words() -> None:
    words = probe("cuda:0")
    assert "cuda:0" in words and "exit code 1" in words


@pytest.mark.parametrize(("script", "words"), [("kill -SEGV $$", "signal 11"), ("echo no device >&2; exit 3", "exit code 3, no device")])
def test_a_process_that_crashes_is_no_crash_here(script: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    assert words in probe("cuda:0")


def test_a_process_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\nexec sleep 60\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setattr(transport, "PATIENCE", 0.2)
    assert "timed out" in probe("cuda:0")


def test_the_process_is_no_rank_of_the_launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\nenv >&2; exit $(env | grep -c -e ^PMI -e ^OMPI_COMM_)\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setenv("PMI_RANK", "1")
    monkeypatch.setenv("PMIX_RANK", "1")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "1")
    assert probe("cuda:0") == ""


def timed(median: float, low: float, high: float) -> dict[str, object]:
    return {"median": median, "interval_95": [low, high]}


@pytest.mark.parametrize(
    ("device", "nccl", "best"),
    [((1.0, 0.9, 1.1), (2.0, 1.9, 2.1), "device"), ((3.9, 3.0, 4.0), (3.0, 2.9, 3.1), "nccl"), ((4.5, 3.9, 5.1), (4.9, 4.6, 5.2), "host")],
)
def test_another_way_than_the_host_must_surely_be_faster(
    device: tuple[float, float, float], nccl: tuple[float, float, float], best: str
) -> None:
    result = {"bytes": 64, "host_s": timed(5.0, 4.8, 5.2), "device_s": timed(*device), "nccl_s": timed(*nccl)}
    assert recommended(result, ["host", "device", "nccl"]) == best
    assert recommended(result, ["host"]) == "host"
