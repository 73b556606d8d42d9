"""Every setting of a run: frozen dataclasses, bounds checked when they are built.

A section is a dataclass, a key one of its fields; ``solver.combine`` on the command line,
``[solver] combine = ...`` in a file and ``APTS_SOLVER__COMBINE`` in the environment are the
same key. Reading files, environment and options is ``settings``' job, not this page's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal


def _inside(name: str, value: float, low: float, high: float, *, closed: bool = True) -> None:
    """Raise ValueError unless low <= value <= high (low < value < high if not ``closed``)."""
    good = low <= value <= high if closed else low < value < high
    if not good:  # also catches nan
        left, right = ("[", "]") if closed else ("(", ")")
        raise ValueError(f"{name} must be in {left}{low:g}, {high:g}{right}, got {value:g}")


@dataclass(frozen=True)
class DataConfig:
    """Which data, and how it is cut."""

    path: str = "data/digits"  # folder with manifest.json, written by `apts-mpi data convert`
    batch: int = 0  # minibatch size |D_k| over all ranks; 0: full batch (APTS), else SAPTS
    overlap: float = 0.05  # share borrowed from the next subdomain, and from the next minibatch
    normalize: Literal["scalar", "channel", "none"] = "scalar"  # which stored mean and std
    limit: int = 0  # use only the first samples of the training set; 0: all

    def __post_init__(self) -> None:
        _inside("data.batch", self.batch, 0, math.inf)
        _inside("data.overlap", self.overlap, 0, 1)
        _inside("data.limit", self.limit, 0, math.inf)


@dataclass(frozen=True)
class ModelConfig:
    """Which network and loss."""

    name: str = "mlp"  # mlp, paper-mnist, paper-mnist-sigmoid, paper-cifar10, cnn, or package.module:factory
    widths: tuple[int, ...] = (64, 32)  # hidden layers of mlp
    loss: str = "cross_entropy"  # cross_entropy, mse, or package.module:function
    dtype: Literal["float32", "float64"] = "float32"

    def __post_init__(self) -> None:
        if any(width < 1 for width in self.widths):
            raise ValueError(f"model.widths must be positive, got {self.widths}")


@dataclass(frozen=True)
class TrustRegionConfig:
    """Acceptance and radius, eq. (7)."""

    radius_init: float = 0.1
    radius_min: float = 1e-6
    radius_max: float = 8.0
    shrink: float = 0.5  # alpha
    grow: float = 2.0  # beta
    eta1: float = 0.25
    eta2: float = 0.75

    def __post_init__(self) -> None:
        _inside("trust_region.radius_min", self.radius_min, 0, math.inf, closed=False)
        _inside("trust_region.radius_max", self.radius_max, self.radius_min, math.inf)
        _inside("trust_region.radius_init", self.radius_init, self.radius_min, self.radius_max)
        _inside("trust_region.shrink", self.shrink, 0, 1, closed=False)
        _inside("trust_region.grow", self.grow, 1, math.inf, closed=False)
        _inside("trust_region.eta1", self.eta1, 0, 1, closed=False)
        _inside("trust_region.eta2", self.eta2, self.eta1, 1, closed=False)


@dataclass(frozen=True)
class LocalConfig:
    """The solver of one subdomain between two communications."""

    solver: Literal["lsr1", "first", "sweep"] = "lsr1"
    iters: int = 5  # nu of lsr1 and first
    memory: int = 5  # L-SR1 pairs
    chunk: int = 250  # sweep: wanted samples per chunk ...
    chunks_min: int = 8  # ... unless that gives fewer ...
    chunks_max: int = 30  # ... or more chunks than these
    passes: int = 2  # sweep: nu = passes * chunks
    momentum: float = 0.9  # sweep

    def __post_init__(self) -> None:
        for name in ("iters", "chunk", "chunks_min", "passes"):
            _inside(f"local.{name}", getattr(self, name), 1, math.inf)
        _inside("local.memory", self.memory, 0, math.inf)
        _inside("local.chunks_max", self.chunks_max, self.chunks_min, math.inf)
        if not 0 <= self.momentum < 1:
            raise ValueError(f"local.momentum must be in [0, 1), got {self.momentum:g}")


@dataclass(frozen=True)
class GlobalStepConfig:
    """The trust-region step on all data after the summed local steps."""

    solver: Literal["lsr1", "first", "none"] = "lsr1"
    memory: int = 5  # L-SR1 pairs, kept over the outer iterations

    def __post_init__(self) -> None:
        _inside("global_step.memory", self.memory, 0, math.inf)


@dataclass(frozen=True)
class SolverConfig:
    """How the subdomains work together."""

    subdomains: int = 0  # N; 0: one per rank
    combine: Literal["mean", "sum"] = "mean"  # s~ = sum (p_i/p) s_i, or sum s_i as in the paper
    radius: Literal["own", "shared"] = "own"  # do ball and global step keep a radius each, or share one
    consistent: bool = True  # first-order consistency r_i of eq. (4); off only for study

    def __post_init__(self) -> None:
        _inside("solver.subdomains", self.subdomains, 0, math.inf)


@dataclass(frozen=True)
class StopConfig:
    """When to end; the first that holds wins."""

    epochs: int = 10  # 0: no limit
    iterations: int = 0  # 0: no limit
    target_loss: float = -math.inf
    target_accuracy: float = math.inf  # per cent
    grad_norm: float = 0.0
    wall_time: float = math.inf  # seconds of the run phase
    nonfinite: int = 10  # non-finite trials in a row

    def __post_init__(self) -> None:
        _inside("stop.epochs", self.epochs, 0, math.inf)
        _inside("stop.iterations", self.iterations, 0, math.inf)
        _inside("stop.grad_norm", self.grad_norm, 0, math.inf)
        _inside("stop.wall_time", self.wall_time, 0, math.inf)
        _inside("stop.nonfinite", self.nonfinite, 1, math.inf)
        if not (self.epochs or self.iterations or math.isfinite(self.wall_time)):
            raise ValueError("set stop.epochs, stop.iterations or stop.wall_time: nothing else is sure to end a run")


@dataclass(frozen=True)
class CommConfig:
    """How buffers cross the wire."""

    reduction: Literal["auto", "mpi", "tree"] = "auto"  # tree: same bits for every number of ranks; auto: MPI where it gives them
    count_limit: int = 2**30  # elements in one MPI call; longer buffers go in pieces


@dataclass(frozen=True)
class RunConfig:
    """Where it runs and what it leaves behind."""

    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    share_gpu: bool = False  # allow two ranks on one GPU
    threads: int = 0  # torch threads per rank; 0: OMP_NUM_THREADS, else the rank's share of the cores
    dir: str = ""  # run directory; empty: runs/<time>-<name>
    name: str = "train"
    evaluate: int = 1  # epochs between test evaluations; full batch: outer iterations; 0: only at the end
    deterministic: bool = True  # torch's deterministic algorithms where they exist
    monitor: Literal["auto", "live", "plain", "none"] = "auto"

    def __post_init__(self) -> None:
        _inside("run.evaluate", self.evaluate, 0, math.inf)
        _inside("run.threads", self.threads, 0, math.inf)


@dataclass(frozen=True)
class Config:
    """All sections of a run."""

    preset: Literal["default", "paper", "sweep"] = "default"
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    solver: SolverConfig = field(default_factory=SolverConfig)
    trust_region: TrustRegionConfig = field(default_factory=TrustRegionConfig)
    local: LocalConfig = field(default_factory=LocalConfig)
    global_step: GlobalStepConfig = field(default_factory=GlobalStepConfig)
    stop: StopConfig = field(default_factory=StopConfig)
    comm: CommConfig = field(default_factory=CommConfig)
    run: RunConfig = field(default_factory=RunConfig)


# What a preset changes against the defaults above; explicit keys win over it.
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "default": {},
    "paper": {  # Algorithm 1 to the letter, with the published constants
        "solver": {"combine": "sum", "radius": "shared"},
        "trust_region": {"radius_init": 0.01, "radius_min": 0.001, "radius_max": 4.0},
    },
    "sweep": {
        "local": {"solver": "sweep"},
        "global_step": {"solver": "none"},
        "trust_region": {"radius_init": 1.0, "radius_max": 8.0, "eta1": 0.1},
    },
}


def preset(name: str, **sections: dict[str, Any]) -> Config:
    """The config of a preset with some keys changed: ``preset("sweep", stop={"epochs": 4})``."""
    if name not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {name!r}")
    base = Config(preset=name)  # type: ignore[arg-type]
    merged = {key: dict(PRESETS[name].get(key, {})) for key in {*PRESETS[name], *sections}}
    for section, keys in sections.items():
        merged[section].update(keys)
    return replace(base, **{section: replace(getattr(base, section), **keys) for section, keys in merged.items()})
