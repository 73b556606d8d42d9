"""One line of a bar's answer: a ratio with its interval, the base in absolute terms, and whether it is met."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from apts_mpi.bench.measure import summary


@dataclass(frozen=True)
class Row:
    """A ratio against its bar; ``bar`` None: told, not judged."""

    number: int
    what: str  # which ratio
    ratio: float
    interval_95: tuple[float, float]
    base: str  # in absolute terms
    bar: float | None = None
    at_least: bool = True  # else at most
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        """Whether the median stands on the right side; None where nothing is asked."""
        if self.bar is None:
            return None
        return self.ratio >= self.bar if self.at_least else self.ratio <= self.bar

    @property
    def verdict(self) -> str:
        return {None: "no bar", True: "met", False: "NOT MET"}[self.met]

    def text(self) -> str:
        """For people."""
        low, high = self.interval_95
        wanted = f"{'>=' if self.at_least else '<='} {self.bar:g}" if self.bar is not None else ""
        return f"{self.number}  {self.what:<58} {self.ratio:6.3f} [{low:.3f}, {high:.3f}]  {wanted:>8}  {self.verdict:<7}  {self.base}"

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "met": self.met, "verdict": self.verdict}


def of_pairs(number: int, what: str, above: Sequence[float], below: Sequence[float], base: str, **more: Any) -> Row:
    """The median of above / below, pair by pair, with its bootstrap interval."""
    found = summary([a / b for a, b in zip(above, below, strict=True)])
    low, high = found["interval_95"]
    return Row(number, what, found["median"], (low, high), base, **more)
