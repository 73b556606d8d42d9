"""How often a host asks for numbers of the device, counted where tensors give them: on a GPU each of these would wait."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "reference"))
from apts_cases import settings, solver

from apts_mpi.native import kernels

ASKED = ("item", "tolist", "__float__", "__bool__", "__int__", "cpu")


def asked(iters: int, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """Stops and local iterations of one outer iteration after the first."""
    fast, _ = solver(settings("lsr1", local={"iters": iters, "radius_start": 0.01, "carry": False}), 2)
    fast.step()
    count, inside = 0, False

    def counting(method: str):
        plain = getattr(torch.Tensor, method)

        def counted(self, *words, **named):
            nonlocal count, inside
            count += not inside  # one of them may call another
            inside, before = True, inside
            try:
                return plain(self, *words, **named)
            finally:
                inside = before

        return counted

    with monkeypatch.context() as patch:
        for method in ASKED:
            patch.setattr(torch.Tensor, method, counting(method))
        step = fast.step()
    return count, step.local_iters


def test_one_stop_a_local_iteration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "compiled", lambda like: False)  # as on a GPU: what the kernels of a CPU return is on the host already
    (few, first), (more, second) = (asked(iters, monkeypatch) for iters in (3, 9))
    assert second - first >= 6 and more - few == second - first
