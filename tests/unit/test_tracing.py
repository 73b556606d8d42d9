"""Profilers hear every region, in the right order, and a missing or odd one is passed over."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch

from apts_mpi import tracing
from apts_mpi.timing import Timers

Said = list[tuple[str, str]]


def install(monkeypatch: pytest.MonkeyPatch, said: Said, *names: str) -> None:
    """Stand-ins for the packages of the profilers ``names``; none of the others can be imported."""
    for module, begin, end in tracing.TOOLS:
        name = module.split(".", maxsplit=1)[0]
        monkeypatch.setitem(sys.modules, name, ModuleType(name) if name in names else None)  # type: ignore[arg-type]
        if name in names:
            loaded = ModuleType(module)
            setattr(loaded, begin, lambda region, name=name: said.append((f"{name} begins", region)))
            setattr(loaded, end, lambda region, name=name: said.append((f"{name} ends", region)))
            monkeypatch.setitem(sys.modules, module, loaded)


def test_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, [])
    assert tracing.tracer(cuda=False) is None


@pytest.mark.parametrize("name", ["scorep", "pycaliper"])
def test_one_profiler(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    said: Said = []
    install(monkeypatch, said, name)
    timers = Timers(tracer=tracing.tracer(cuda=False))
    with pytest.raises(KeyError), timers("local solve"), timers("evaluate"):
        raise KeyError
    assert said == [(f"{name} {what}", region) for what, region in
                    (("begins", "local solve"), ("begins", "evaluate"), ("ends", "evaluate"), ("ends", "local solve"))]  # fmt: skip


def test_several_end_in_reverse_order(monkeypatch: pytest.MonkeyPatch) -> None:
    said: Said = []
    install(monkeypatch, said, "scorep", "pycaliper")
    monkeypatch.setattr(torch.cuda.nvtx, "range_push", lambda region: said.append(("nvtx begins", region)))
    monkeypatch.setattr(torch.cuda.nvtx, "range_pop", lambda: said.append(("nvtx ends", "")))
    found = tracing.tracer(cuda=True)
    assert found is not None
    found.begin("test")
    found.end("test")
    order = [what for what, _ in said]
    assert order == ["nvtx begins", "scorep begins", "pycaliper begins", "pycaliper ends", "scorep ends", "nvtx ends"]


def test_another_package_of_the_same_name(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, [])
    monkeypatch.setitem(sys.modules, "pycaliper", ModuleType("pycaliper"))
    monkeypatch.setitem(sys.modules, "pycaliper.instrumentation", ModuleType("pycaliper.instrumentation"))
    assert tracing.tracer(cuda=False) is None
