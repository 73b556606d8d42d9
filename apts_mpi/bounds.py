"""How a key of the settings is declared, and how its bounds are checked."""

from __future__ import annotations

from dataclasses import field
from typing import TypeVar

T = TypeVar("T")
AVERAGE_MAX = 1000  # power of the weights of a mean of iterates


def key(default: T, meaning: str) -> T:
    """A field with its default and the line that ``train --help`` prints for it."""
    return field(default=default, metadata={"meaning": meaning})


def inside(name: str, value: float, low: float, high: float, *, closed: bool = True) -> None:
    """Raise ValueError unless low <= value <= high (low < value < high if not ``closed``)."""
    good = low <= value <= high if closed else low < value < high
    if not good:  # also catches nan
        left, right = ("[", "]") if closed else ("(", ")")
        raise ValueError(f"{name} must be in {left}{low:g}, {high:g}{right}, got {value:g}")
