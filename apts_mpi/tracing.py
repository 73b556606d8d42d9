"""Region names for profilers outside: NVTX (Nsight Systems), Score-P, Caliper; each where it is installed.

Nothing is installed or switched on here. Without one of them there is no tracer and a region costs nothing more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module

Hook = Callable[[str], object]

# Module, call at the begin of a region, call at its end; both take the region's name.
TOOLS = (("scorep.user", "region_begin", "region_end"), ("pycaliper.instrumentation", "begin_region", "end_region"))


@dataclass(frozen=True)
class Tracer:
    """What to call at the borders of every region."""

    begin: Hook
    end: Hook


def tracer(cuda: bool) -> Tracer | None:
    """The tracer of this process; None if no profiler could listen. ``cuda``: does the run use a GPU."""
    found = [*([_nvtx()] if cuda else []), *(tool for names in TOOLS if (tool := _tool(*names)))]
    return _joined(found) if found else None


def _tool(module: str, begin: str, end: str) -> Tracer | None:
    try:
        loaded = import_module(module)
        return Tracer(getattr(loaded, begin), getattr(loaded, end))
    except (ImportError, OSError, AttributeError):  # not installed, a library is missing, or another package of this name
        return None


def _nvtx() -> Tracer:
    from torch.cuda import nvtx

    return Tracer(nvtx.range_push, lambda name: nvtx.range_pop())  # type: ignore[no-untyped-call]


def _joined(tools: Sequence[Tracer]) -> Tracer:
    """One tracer for several; the last to begin is the first to end."""
    if len(tools) == 1:
        return tools[0]

    def begin(name: str) -> None:
        for tool in tools:
            tool.begin(name)

    def end(name: str) -> None:
        for tool in reversed(tools):
            tool.end(name)

    return Tracer(begin, end)
