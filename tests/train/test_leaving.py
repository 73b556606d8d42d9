"""How a run is left by an error in the middle."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from train_cases import network, settings, task

from apts_mpi import Result, Status, train
from apts_mpi.parallel.serial import SerialCommunicator

ITERATIONS = 6


def run(folder: Path, resume: str = "auto", loss: Any = "cross_entropy") -> Result:
    config = settings(stop={"epochs": 0, "iterations": ITERATIONS}, checkpoint={"every": "2"}, run={"dir": str(folder), "resume": resume})
    return train(network(), *task(), test=task(50, 9), loss=loss, config=config, comm=SerialCommunicator())


def opened(folder: Path) -> list[str]:
    """What this process has open below ``folder``."""
    links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
    found = [os.readlink(link) for link in links if os.path.lexists(link)]
    return [path for path in found if path.startswith(str(folder))]


def test_an_error_in_the_middle_gives_the_folder_back(tmp_path: Path) -> None:
    """The same process can go on there at once."""
    calls = [0]

    def brittle(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        calls[0] += 1
        if calls[0] == 30:
            raise RuntimeError("brittle")
        return torch.nn.functional.cross_entropy(outputs, targets, reduction="none")

    with pytest.raises(RuntimeError, match="brittle"):
        run(tmp_path / "run", loss=brittle)
    assert not (tmp_path / "run" / "lock").exists() and opened(tmp_path) == []
    result = run(tmp_path / "run", "must", loss=brittle)
    assert result.status is Status.ITERATIONS and torch.equal(result.theta, run(tmp_path / "whole").theta)
