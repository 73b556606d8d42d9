"""Every setting of a run: frozen dataclasses, bounds checked when they are built.

A section is a dataclass, a key one of its fields; ``solver.combine`` on the command line,
``[solver] combine = ...`` in a file and ``APTS_SOLVER__COMBINE`` in the environment are the
same key. Reading files, environment and options is ``settings``' job, not this page's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from apts_mpi.baseline import ALL_REDUCE, BaselineConfig, Method
from apts_mpi.bounds import AVERAGE_MAX
from apts_mpi.bounds import inside as _inside
from apts_mpi.bounds import key as _key
from apts_mpi.safety import CheckpointConfig, SafetyConfig


@dataclass(frozen=True)
class DataConfig:
    """Which data, and how they are divided."""

    path: str = _key("data/digits", "folder with manifest.json, written by `apts-mpi data convert`")
    batch: int = _key(0, "minibatch size |D_k| over all ranks; 0: full batch (APTS), else SAPTS")
    overlap: float = _key(0.05, "fraction borrowed from the next subdomain, and from the next minibatch")
    normalize: Literal["scalar", "channel", "none"] = _key("scalar", "which stored mean and std")
    limit: int = _key(0, "use only the first samples of the training set; 0: all")
    place: Literal["auto", "device", "host"] = _key("auto", "where samples are kept; host: copied when used; auto: half the free memory")

    def __post_init__(self) -> None:
        _inside("data.batch", self.batch, 0, math.inf)
        _inside("data.overlap", self.overlap, 0, 1)
        _inside("data.limit", self.limit, 0, math.inf)


@dataclass(frozen=True)
class ModelConfig:
    """Which network and loss."""

    name: str = _key("mlp", "mlp, tanh, poisson, cnn, resnet, transformer, paper-mnist[-sigmoid], paper-cifar10, or package.module:factory")
    widths: tuple[int, ...] = _key((64, 32), "hidden layers of mlp, tanh and poisson")
    loss: str = _key("cross_entropy", "cross_entropy, mse, or package.module:function")
    dtype: Literal["float32", "float64"] = _key("float32", "precision of theta, gradients and messages")
    precision: Literal["full", "tf32", "bf16"] = _key("full", "products inside the network; full: as model.dtype; tf32: on a GPU; bf16")
    compile: bool = _key(False, "torch.compile of the network")
    channels_last: bool = _key(False, "evaluate images channels-last, which can speed up convolutions")

    def __post_init__(self) -> None:
        if self.precision != "full" and self.dtype != "float32":
            raise ValueError(f"model.precision = {self.precision} needs model.dtype = float32, got {self.dtype}")
        if any(width < 1 for width in self.widths):
            raise ValueError(f"model.widths must be positive, got {self.widths}")


@dataclass(frozen=True)
class TrustRegionConfig:
    """Acceptance and radius, eq. (7)."""

    radius_init: float = _key(1.0, "Delta of the first outer iteration; sweep: where the search for it starts")
    radius_min: float = _key(1e-6, "lower bound of Delta")
    radius_max: float = _key(1e6, "upper bound of Delta")
    shrink: float = _key(0.5, "alpha: factor on Delta after a poor step")
    grow: float = _key(2.0, "beta: factor on Delta after a good step")
    eta0: float = _key(0.1, "a step is accepted if rho >= eta0; 0: the same as eta1")
    eta1: float = _key(0.25, "Delta shrinks if rho < eta1")
    eta2: float = _key(0.75, "Delta grows if rho > eta2")
    reached: float = _key(0.55, "fraction of Delta that local steps must reach for the ball to grow; a shared radius grows by rho alone")

    def __post_init__(self) -> None:
        _inside("trust_region.radius_min", self.radius_min, 0, math.inf, closed=False)
        _inside("trust_region.radius_max", self.radius_max, self.radius_min, 1e30)
        _inside("trust_region.radius_init", self.radius_init, self.radius_min, self.radius_max)
        _inside("trust_region.shrink", self.shrink, 0, 1, closed=False)
        _inside("trust_region.grow", self.grow, 1, math.inf, closed=False)
        _inside("trust_region.eta1", self.eta1, 0, 1, closed=False)
        _inside("trust_region.eta0", self.eta0, 0, self.eta1)
        _inside("trust_region.eta2", self.eta2, self.eta1, 1, closed=False)
        _inside("trust_region.reached", self.reached, 0, 1)

    @property
    def accept(self) -> float:
        """The least rho of an accepted step."""
        return self.eta0 or self.eta1


@dataclass(frozen=True)
class LocalConfig:
    """The solver of one subdomain between two communications."""

    solver: Literal["lsr1", "first", "sweep"] = _key("sweep", "sweep: chunks; lsr1: quasi-Newton, the paper's; first: gradient steps")
    iters: int = _key(10, "lsr1, first: nu, steps between two communications")
    memory: int = _key(10, "lsr1: pairs kept in memory; sweep, full batch: pairs of the metric of its steps, 0: none")
    gamma: float = _key(1e-6, "lsr1: curvature assumed before the first pair; a value this small makes the first step reach its bound")
    radius_start: float = _key(0.5, "lsr1, first: first local radius as a fraction of the ball")
    carry: bool = _key(True, "lsr1, first: start an outer iteration from the local radius that the previous one left")
    chunk: int = _key(250, "sweep: desired samples per chunk")
    chunks_min: int = _key(20, "sweep: fewest chunks of a subdomain")
    chunks_max: int = _key(30, "sweep: most chunks of a subdomain")
    passes: int = _key(2, "sweep: steps over all chunks, nu = passes * chunks")
    momentum: float = _key(0.9, "sweep: weight of earlier chunk gradients")

    def __post_init__(self) -> None:
        for name in ("iters", "chunk", "chunks_min", "passes"):
            _inside(f"local.{name}", getattr(self, name), 1, math.inf)
        _inside("local.memory", self.memory, 0, math.inf)
        _inside("local.gamma", self.gamma, 1e-8, 1e8)
        _inside("local.radius_start", self.radius_start, 1e-6, 1)
        _inside("local.chunks_max", self.chunks_max, self.chunks_min, math.inf)
        if not 0 <= self.momentum < 1:
            raise ValueError(f"local.momentum must be in [0, 1), got {self.momentum:g}")


@dataclass(frozen=True)
class GlobalStepConfig:
    """The trust-region step on all data after the summed local steps."""

    solver: Literal["lsr1", "first", "none"] = _key("none", "model of the global step; none: no global step")
    memory: int = _key(5, "lsr1: pairs kept in memory across outer iterations")

    def __post_init__(self) -> None:
        _inside("global_step.memory", self.memory, 0, math.inf)


@dataclass(frozen=True)
class SolverConfig:
    """How the subdomains work together."""

    subdomains: int = _key(0, "N, the number of subdomains; 0: one per rank")
    combine: Literal["mean", "sum"] = _key("mean", "s~ = sum (p_i/p) s_i, or sum s_i as in the paper")
    radius: Literal["own", "shared"] = _key("own", "whether ball and global step have a radius each, or share one")
    momentum: bool = _key(True, "sweep, mean: add as large a part of the last summed step as cancels in the mean of the steps")
    consistent: bool = _key(True, "first-order consistency r_i of eq. (4); off only for study")
    average: int = _key(8, "apts: p: the result is the mean of the iterates theta_j, weighted by about j^p; 0: the last iterate")

    def __post_init__(self) -> None:
        _inside("solver.subdomains", self.subdomains, 0, math.inf)
        _inside("solver.average", self.average, 0, AVERAGE_MAX)


@dataclass(frozen=True)
class StopConfig:
    """When to end: at the first of these that holds."""

    epochs: int = _key(10, "passes over the training set; 0: no limit")
    iterations: int = _key(0, "outer iterations; 0: no limit")
    passes: float = _key(0.0, "gradient evaluations, in passes over the training set; 0: no limit")
    reductions: int = _key(0, "reductions of n numbers; 0: no limit")
    target_loss: float = _key(-math.inf, "end when the loss is at or below this")
    target_accuracy: float = _key(math.inf, "end when the test accuracy is at or above this, per cent")
    grad_norm: float = _key(0.0, "end when the gradient norm is at or below this")
    wall_time: float = _key(math.inf, "seconds of the run phase")
    nonfinite: int = _key(10, "consecutive iterations with a loss or gradient that is not finite")

    def __post_init__(self) -> None:
        limits = ("epochs", "iterations", "passes", "reductions")
        for name in (*limits, "grad_norm"):
            _inside(f"stop.{name}", getattr(self, name), 0, math.inf)
        _inside("stop.wall_time", self.wall_time, 0, math.inf)
        _inside("stop.nonfinite", self.nonfinite, 1, math.inf)
        if not (any(0 < getattr(self, name) < math.inf for name in limits) or math.isfinite(self.wall_time)):
            raise ValueError(f"set stop.{', stop.'.join(limits)} or stop.wall_time: nothing else is sure to end a run")


@dataclass(frozen=True)
class CommConfig:
    """How ranks communicate."""

    reduction: Literal["auto", "mpi", "tree"] = _key("auto", "host sums; tree: same bits on 1, 2, 4, ... ranks; auto: MPI if it gives them")
    count_limit: int = _key(2**30, "most elements in one MPI call; longer buffers are sent in pieces")
    transport: Literal["auto", "host", "device", "nccl"] = _key("host", "from a GPU: pinned memory, device memory (auto: if MPI can), NCCL")
    emulate_latency: float = _key(0.0, "latency in seconds of an emulated network, which delays every reduction; 0: none")
    emulate_bandwidth: float = _key(0.0, "bandwidth in bytes/s of the emulated network; 0: unlimited")
    emulate_ranks: int = _key(0, "number of ranks on the emulated network; 0: that of the run")

    def __post_init__(self) -> None:
        _inside("comm.count_limit", self.count_limit, 1, math.inf)
        if self.transport != "host" and self.reduction == "tree":
            raise ValueError(f"comm.reduction = tree sums on the host, comm.transport is {self.transport}: change one of them")
        _inside("comm.emulate_latency", self.emulate_latency, 0, 60)
        _inside("comm.emulate_bandwidth", self.emulate_bandwidth, 0, math.inf)
        _inside("comm.emulate_ranks", self.emulate_ranks, 0, 2**30)
        if self.emulate_ranks and not (self.emulate_latency or self.emulate_bandwidth):
            raise ValueError("comm.emulate_ranks needs comm.emulate_latency or comm.emulate_bandwidth")


@dataclass(frozen=True)
class RunConfig:
    """Where it runs and what it leaves behind."""

    seed: int = _key(0, "seed of the initial parameters and the order of the data")
    device: Literal["auto", "cpu", "cuda"] = _key("auto", "where to compute; auto: a GPU if there is one")
    share_gpu: bool = _key(False, "allow two ranks on one GPU")
    graph: bool = _key(True, "on a GPU: record evaluations and sweeps as CUDA graphs and replay them")
    threads: int = _key(0, "torch threads per rank; 0: OMP_NUM_THREADS, else the rank's share of the cores")
    dir: str = _key("", "run directory; empty: runs/<time>-<name>")
    resume: Literal["never", "auto", "must"] = _key("never", "resume from the last checkpoint in run.dir; auto: if there is one")
    allow_changes: bool = _key(False, "resume although settings or data differ from the checkpoint's: another trajectory")
    name: str = _key("train", "last part of the run directory's name")
    evaluate: int = _key(1, "epochs between test evaluations; full batch: outer iterations; 0: only at the end")
    evaluate_iterations: int = _key(0, "outer iterations between test evaluations, in place of epochs; 0: run.evaluate counts")
    deterministic: bool = _key(True, "torch's deterministic algorithms where they exist; CUDA graphs only if they give the same bits")
    monitor: Literal["auto", "live", "plain", "none"] = _key("auto", "live: a view on a terminal; plain: lines for a log")
    measure_wait: bool = _key(False, "put a barrier before each reduction, to tell waiting from sending; costs time")
    peak: bool = _key(False, "measure the peak rate of a matrix product, to report the fraction achieved")

    def __post_init__(self) -> None:
        for name in ("evaluate", "evaluate_iterations", "threads"):
            _inside(f"run.{name}", getattr(self, name), 0, math.inf)


@dataclass(frozen=True)
class Config:
    """All sections of a run."""

    method: Method = _key("apts", "apts, or a baseline: one reduction per gradient; one per H gradients; the global trust region alone")
    preset: Literal["default", "lsr1", "paper"] = _key("default", "named set of values that replaces defaults")
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    solver: SolverConfig = field(default_factory=SolverConfig)
    trust_region: TrustRegionConfig = field(default_factory=TrustRegionConfig)
    local: LocalConfig = field(default_factory=LocalConfig)
    global_step: GlobalStepConfig = field(default_factory=GlobalStepConfig)
    baseline: BaselineConfig = field(default_factory=BaselineConfig)
    stop: StopConfig = field(default_factory=StopConfig)
    comm: CommConfig = field(default_factory=CommConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    safety: SafetyConfig = field(default_factory=SafetyConfig)
    run: RunConfig = field(default_factory=RunConfig)

    @property
    def pairs(self) -> int:
        """Pairs of the largest L-SR1 model that the method has; 0: none."""
        local = self.local.memory if self.method == "apts" and self.local.solver == "lsr1" else 0
        on_all = self.global_step.memory if self.method in ("apts", "trust-region") and self.global_step.solver == "lsr1" else 0
        return max(local, on_all)

    def __post_init__(self) -> None:
        if self.method == "trust-region" and self.global_step.solver == "none":
            raise ValueError("method trust-region needs global_step.solver lsr1 or first, got none")
        if self.baseline.overlap and self.method not in ALL_REDUCE:
            raise ValueError(f"baseline.overlap needs method sgd, adam or adamw, got {self.method}")
        if self.method != "apts" and self.baseline.schedule == "cosine" and not (self.stop.epochs or self.stop.iterations):
            raise ValueError("baseline.schedule cosine needs stop.epochs or stop.iterations, to know where it ends")

    @property
    def average(self) -> int:
        """The power of the mean of the iterates that is this method's result; 0: its last iterate."""
        return self.solver.average if self.method == "apts" else self.baseline.average
