"""The settings of what keeps a run safe: checkpoints, and checks while it goes on."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from apts_mpi.bounds import inside, key

SECONDS = {"s": 1.0, "min": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class Every:
    """How often: after so many outer iterations, or so many seconds; both 0: never; ``auto``: as the measured cost of a write says."""

    iterations: int = 0
    seconds: float = 0.0
    auto: bool = False


def every(text: str) -> Every:
    """What ``auto``, ``off``, ``20`` (outer iterations), ``90s``, ``10min`` or ``2h`` mean; ValueError for anything else."""
    if text in ("auto", "off"):
        return Every(auto=text == "auto")
    found = re.fullmatch(r"([0-9]{1,9})(s|min|h|)", text)
    if not found or int(found[1]) < 1:
        raise ValueError(f"checkpoint.every must be auto, off, a number of outer iterations, or a time such as 90s or 10min, got {text!r}")
    return Every(seconds=int(found[1]) * SECONDS[found[2]]) if found[2] else Every(iterations=int(found[1]))


@dataclass(frozen=True)
class CheckpointConfig:
    """When the state of a run is saved, and how much of it is kept."""

    every: str = key("auto", "auto: interval of Young and Daly; off; 20: outer iterations; 90s, 10min: time")
    keep: int = key(2, "number of newest checkpoints to keep")
    mtbf: float = key(24.0, "auto: expected hours between two failures of the job")

    def __post_init__(self) -> None:
        every(self.every)
        inside("checkpoint.keep", self.keep, 1, 1000)
        inside("checkpoint.mtbf", self.mtbf, 0, 1e6, closed=False)


@dataclass(frozen=True)
class SafetyConfig:
    """What is checked during a run."""

    verify: int = key(20, "outer iterations between comparisons of the hash of theta across ranks; 0: only at the end")
    on_difference: Literal["halt", "heal"] = key("halt", "if ranks differ: end the run, or copy a majority's theta and state")
    checksum: bool = key(True, "compare every reduced vector with the exact sum of the ranks' checksums")
    watchdog: bool = key(True, "a thread that finds stuck ranks, names them and ends the run")
    deadline: float = key(600.0, "seconds without progress after which a rank that waits for no other counts as stuck")
    deadline_setup: float = key(1800.0, "the same during set-up")

    def __post_init__(self) -> None:
        inside("safety.verify", self.verify, 0, math.inf)
        inside("safety.deadline", self.deadline, 0.5, math.inf)
        inside("safety.deadline_setup", self.deadline_setup, 0.5, math.inf)
