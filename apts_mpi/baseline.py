"""The methods to choose from, and the settings of those that APTS is compared with."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from apts_mpi.bounds import AVERAGE_MAX, inside, key

Method = Literal["apts", "sgd", "adam", "adamw", "local-sgd", "trust-region"]
METHODS: tuple[Method, ...] = get_args(Method)
ALL_REDUCE: tuple[Method, ...] = ("sgd", "adam", "adamw")  # torch's optimizers; their iterates do not depend on N


@dataclass(frozen=True)
class BaselineConfig:
    """What the methods other than apts need; trust-region takes its settings from the sections above."""

    lr: float = key(0.01, "learning rate at the start")
    momentum: float = key(0.9, "sgd, local-sgd: weight of earlier steps")
    nesterov: bool = key(False, "sgd, local-sgd: Nesterov's form of the momentum")
    weight_decay: float = key(0.0, "weight of theta added to the gradient; adamw: decoupled, theta shrinks by lr times it")
    schedule: Literal["constant", "cosine", "step"] = key("constant", "how the learning rate changes with the epochs")
    lr_end: float = key(0.0, "cosine: last learning rate as a fraction of the first")
    step: int = key(30, "step: epochs between two changes")
    decay: float = key(0.1, "step: factor on the learning rate at each change")
    period: int = key(8, "local-sgd: H, local steps between two averages")
    overlap: bool = key(False, "sgd, adam, adamw: send parts of the gradient while the rest is still being computed; CPU only")
    bucket: int = key(2**20, "overlap: least bytes of a part, which consists of whole layers")
    average: int = key(0, "all but apts: as solver.average, the result is a mean of the iterates; 0: the last iterate")

    def __post_init__(self) -> None:
        if not 0 < self.lr < math.inf:
            raise ValueError(f"baseline.lr must be positive and finite, got {self.lr:g}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"baseline.momentum must be in [0, 1), got {self.momentum:g}")
        if self.nesterov and not self.momentum:
            raise ValueError("baseline.nesterov needs baseline.momentum above 0")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"baseline.weight_decay must be in [0, inf), got {self.weight_decay:g}")
        inside("baseline.lr_end", self.lr_end, 0, 1)
        inside("baseline.step", self.step, 1, math.inf)
        if not 0 < self.decay <= 1:
            raise ValueError(f"baseline.decay must be in (0, 1], got {self.decay:g}")
        inside("baseline.period", self.period, 1, math.inf)
        inside("baseline.bucket", self.bucket, 1, math.inf)
        inside("baseline.average", self.average, 0, AVERAGE_MAX)
