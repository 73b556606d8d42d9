"""From one measured machine to networks and rank counts that were not there: what the cost model says, and what it assumes.

Every rank computes as measured. Sums take the time of ``network`` on the stated fabric, and their additions one pass over the vector.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from apts_mpi.config import Config
from apts_mpi.network import Network
from apts_mpi.presets import preset
from apts_mpi.study.cost import checked, price
from apts_mpi.study.machine import Machine
from apts_mpi.study.shares import shares
from apts_mpi.study.work import Work, count

RANKS = tuple(2**k for k in range(13))
SAMPLES_MAX = 2**16  # of a rank, up to which a crossover is looked for
DENSE = 16
BLOCKING, OVERLAPPED = "SGD", "SGD overlapped"
NUS = (5, 10, 20)
LSR1 = f"APTS nu = {', '.join(map(str, NUS))} is preset lsr1 with nu local iterations"
PRICED = (
    f"Priced by the model, not measured: {LSR1}, APTS sweep the preset default;",
    f"{BLOCKING} sums its gradient after the backward pass, {OVERLAPPED} during it. Model and data are those of the study.",
)
ASSUMPTIONS = (
    "Assumed: every rank computes as fast as measured; no contention between nodes, no noise, no rank waits for another;",
    "sums by the better of recursive doubling and Rabenseifner at the fabric's latency and bandwidth, their additions one pass over",
    "the vector; an overlapped sum is hidden ideally by what is left of the backward pass; all local iterations are made; no samples",
    "are borrowed (data.overlap = 0), every iteration has a fresh minibatch.",
    "Time per gradient says nothing about how many gradients a method needs.",
)


@dataclass(frozen=True)
class Fabric:
    """A network between ranks."""

    name: str
    latency: float  # s
    bandwidth: float  # bytes/s of a rank
    source: str  # of the figures


FABRICS = (
    Fabric("1 GbE", 50e-6, 0.125e9, "line rate; latency of TCP through a switch, order of magnitude"),
    Fabric("10 GbE", 30e-6, 1.25e9, "line rate; latency of TCP through a switch, order of magnitude"),
    Fabric("100 Gb/s RoCE", 2e-6, 12.5e9, "line rate; latency of a one-sided write with MPI on top, order of magnitude"),
    Fabric("HDR InfiniBand", 2e-6, 25e9, "line rate of 200 Gb/s; latency of MPI, order of magnitude"),
    Fabric("50 us, 1.25 GB/s", 50e-6, 1.25e9, "the emulated network of docs/measuring.md"),
)


def fabrics(*own: Fabric) -> tuple[Fabric, ...]:
    """The stated fabrics, and ``own`` ones behind them; one of the same name takes its place."""
    given = {fabric.name: fabric for fabric in (*FABRICS, *own)}
    return tuple(given.values())


def variants(config: Config) -> dict[str, Config]:
    """What is compared, for the model and data settings of ``config``: name -> config."""
    real = replace(config.comm, emulate_latency=0.0, emulate_bandwidth=0.0, emulate_ranks=0)
    found = {f"APTS nu = {nu}": preset("lsr1", local={"iters": nu}) for nu in NUS}
    found["APTS sweep"] = preset("default")
    found |= {name: preset("default", "sgd", baseline={"overlap": name == OVERLAPPED, "bucket": config.baseline.bucket})
              for name in (BLOCKING, OVERLAPPED)}  # fmt: skip
    shared = {"model": config.model, "run": config.run, "data": replace(config.data, overlap=0.0), "comm": real}
    return {name: replace(each, **shared) for name, each in found.items()}  # type: ignore[arg-type]


@dataclass(frozen=True)
class Row:
    """One method on one fabric with one number of ranks; minibatches are fresh in every iteration."""

    fabric: str
    method: str
    ranks: int
    samples: int  # per rank and minibatch
    iteration_seconds: float
    gradients: float  # of ``samples`` samples per rank, in an outer iteration
    bytes: int  # sent by a rank's sums in an outer iteration

    @property
    def seconds(self) -> float:
        """Per gradient evaluation of ``samples`` samples on every rank."""
        return self.iteration_seconds / self.gradients


@dataclass(frozen=True)
class Crossover:
    """The widest range of samples per rank, from ``low`` to ``high``, in which an APTS needs less time per gradient than an SGD.

    Narrower ones may stand beside it: an evaluation costs a little more where a piece of 1,024 samples is begun.

    ``low`` 1: below ``high``. ``low`` 0: in none up to SAMPLES_MAX. ``high`` inf: to SAMPLES_MAX and beyond.
    """

    fabric: str
    method: str
    against: str
    ranks: int
    low: int
    high: float

    def __str__(self) -> str:
        if self.low == 0:
            return "never"
        if math.isinf(self.high):
            return "always" if self.low == 1 else f">={self.low}"
        return f"<={self.high:.0f}" if self.low == 1 else f"{self.low}-{self.high:.0f}"


@dataclass(frozen=True)
class Effort:
    """What a method was measured to need to the target, taken not to change with the number of ranks."""

    config: Config  # with the minibatch over all ranks
    iterations: float  # outer
    passes: float  # gradient evaluations, in passes over the training set


@dataclass(frozen=True)
class Target:
    """Time to target of one method."""

    fabric: str
    method: str
    ranks: int
    seconds: float


def seconds_of(machine: Machine, config: Config, n_params: int, fabric: Fabric, ranks: int, samples: int) -> tuple[Work, dict[str, float]]:
    """Work and seconds by ``cost.PARTS`` of an outer iteration over ``samples`` training samples, the fabric being the network."""
    compute = checked(machine.rank(ranks), config, n_params)
    work = count(config, n_params, ranks, samples)
    wire = Network(fabric.latency, fabric.bandwidth, ranks)
    add = compute.vector["add"] / (n_params * compute.itemsize) if ranks > 1 else 0.0
    return work, price(work, compute, config.baseline.bucket, lambda nbytes: add * nbytes, wire)


def whatif(
    machine: Machine, config: Config, n_params: int, fabrics: Sequence[Fabric] = FABRICS, ranks: Sequence[int] = RANKS,
    samples_per_rank: int = 64,
) -> list[Row]:  # fmt: skip
    """Every method of ``variants`` on every fabric and rank count, one subdomain per rank."""
    methods = variants(config)
    return [
        _row(machine, methods[name], name, n_params, fabric, p, samples_per_rank)
        for fabric in fabrics for p in ranks for name in methods
    ]  # fmt: skip


def _row(machine: Machine, config: Config, name: str, n_params: int, fabric: Fabric, ranks: int, samples: int) -> Row:
    # Two minibatches, so that each is a fresh one.
    sized = replace(config, data=replace(config.data, batch=samples * ranks), solver=replace(config.solver, subdomains=0))
    work, parts = seconds_of(machine, sized, n_params, fabric, ranks, 2 * samples * ranks)
    nbytes = sum(message.bytes for message in work.messages)
    return Row(fabric.name, name, ranks, samples, sum(parts.values()), work.gradient_samples / samples, nbytes)


def crossovers(
    machine: Machine, config: Config, n_params: int, fabrics: Sequence[Fabric] = FABRICS, ranks: Sequence[int] = RANKS
) -> list[Crossover]:
    """B* of every APTS against blocking and overlapped SGD, where there are messages."""
    methods = variants(config)

    @functools.cache
    def seconds(name: str, fabric: Fabric, p: int, samples: int) -> float:
        return _row(machine, methods[name], name, n_params, fabric, p, samples).seconds

    def won(name: str, against: str, fabric: Fabric, p: int) -> tuple[int, float]:
        return widest_range(lambda samples: seconds(name, fabric, p, samples) < seconds(against, fabric, p, samples))

    ours = [name for name in methods if name not in (BLOCKING, OVERLAPPED)]
    return [
        Crossover(fabric.name, name, against, p, *won(name, against, fabric, p))
        for fabric in fabrics for p in ranks if p > 1 for name in ours for against in (BLOCKING, OVERLAPPED)
    ]  # fmt: skip


def widest_range(holds: Callable[[int], bool], top: int = SAMPLES_MAX) -> tuple[int, float]:
    """First and last number of the range within 1..top, widest by the ratio of both, in which ``holds``; (0, 0) if in none.

    The last is inf if it holds up to ``top``. Between two numbers that are tried, which differ by 1/DENSE, it may change once.
    """
    best, low = (0, 0.0), _first(holds, 1, top)
    while low:
        end = _first(lambda number: not holds(number), low, top)
        last = end - 1 if end else math.inf
        if not best[0] or min(last, top) / low > min(best[1], top) / best[0]:
            best = low, last
        low = _first(holds, end, top) if end else 0
    return best


def _first(holds: Callable[[int], bool], start: int, top: int) -> int:
    """The first number from ``start`` on for which ``holds``; 0 if there is none up to ``top``."""
    low, high = start, start
    while not holds(high):
        if high >= top:
            return 0
        low, high = high, min(high + max(1, high // DENSE), top)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def time_to_target(
    machine: Machine, n_params: int, samples: int, efforts: Mapping[str, Effort], fabrics: Sequence[Fabric] = FABRICS,
    ranks: Sequence[int] = RANKS,
) -> list[Target]:  # fmt: skip
    """Seconds to the target over ``samples`` training samples, the minibatch over all ranks kept: iterations and passes do not change.

    Rank counts that are more than a method has subdomains or samples for are left out.
    """
    return [
        Target(fabric.name, name, p, _to_target(machine, effort, n_params, fabric, p, samples))
        for fabric in fabrics for name, effort in efforts.items() for p in ranks if _possible(effort.config, p, samples)
    ]  # fmt: skip


def _possible(config: Config, ranks: int, samples: int) -> bool:
    try:
        return bool(shares(config, ranks, samples))
    except ValueError:
        return False


def _to_target(machine: Machine, effort: Effort, n_params: int, fabric: Fabric, ranks: int, samples: int) -> float:
    work, parts = seconds_of(machine, effort.config, n_params, fabric, ranks, samples)
    passes = effort.iterations * work.gradient_samples * ranks / samples  # if nothing ended early
    return effort.iterations * (sum(parts.values()) - parts["gradients"] * (1 - effort.passes / passes))
