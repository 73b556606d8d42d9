"""Additive preconditioned trust-region training, data parallel over MPI.

Importing this package starts nothing and loads neither torch nor MPI; a public name loads
what it needs when it is first used.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from apts_mpi.config import Config
    from apts_mpi.contracts import Status, StepInfo
    from apts_mpi.presets import preset
    from apts_mpi.solver.apts import APTS
    from apts_mpi.train import Result, run_training, train

__version__ = "0.1.0.dev0"
__all__ = ["APTS", "Config", "Result", "Status", "StepInfo", "preset", "run_training", "train"]

_HOME = {
    "APTS": "solver.apts",
    "Config": "config",
    "Result": "train",
    "Status": "contracts",
    "StepInfo": "contracts",
    "preset": "presets",
    "run_training": "train",
    "train": "train",
}


def __getattr__(name: str) -> Any:
    """Load a public name from its module."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


class _Package(ModuleType):
    """Keeps ``apts_mpi.train`` the function: the import system binds a loaded submodule over the name it shares."""

    def __setattr__(self, name: str, value: Any) -> None:
        shared = name in __all__ and isinstance(value, ModuleType)
        super().__setattr__(name, getattr(value, name) if shared else value)


sys.modules[__name__].__class__ = _Package
