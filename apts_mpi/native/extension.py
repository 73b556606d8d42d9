"""Whether the compiled kernels are there and wanted; loads neither torch nor MPI."""

from __future__ import annotations

import importlib
import os
from functools import cache
from types import ModuleType
from typing import Any

SWITCH = "APTS_NATIVE"  # 0: the torch twins serve; 1: the kernels must be there; else whatever is there


@cache
def extension() -> ModuleType | None:
    """The compiled module, or None where the torch twins serve.

    ImportError if APTS_NATIVE=1 and there is none; ValueError if it is neither empty nor 0 nor 1.
    """
    wish = os.environ.get(SWITCH, "")
    if wish not in ("", "0", "1"):
        raise ValueError(f"{SWITCH} must be 0, 1 or empty, got {wish!r}")
    if wish == "0":
        return None
    try:
        return importlib.import_module("apts_mpi.native._kernels")
    except ImportError as error:
        if wish == "1":
            told = "build them with: cmake -S . -B build && cmake --build build, or leave it empty"
            raise ImportError(f"{SWITCH}=1, but the compiled kernels cannot be loaded: {error}; {told}") from error
        return None


def compiled_module() -> Any:
    """The compiled module, which must be there."""
    module = extension()
    assert module is not None, "asked for where kernels.compiled() says no"
    return module


def state() -> str:
    """One line for records: which kernels serve and, if they are not the compiled ones, why."""
    if os.environ.get(SWITCH) == "0":
        return f"torch twins, {SWITCH}=0"
    module = extension()
    return f"compiled, {module.level()}{', CUDA' if module.cuda else ''}" if module else "torch twins, nothing was compiled"
