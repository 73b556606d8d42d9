"""The constants of a machine, as ``bench compute`` and ``bench reduce`` measured them, and what lies between two measurements."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from apts_mpi.network import Network
from apts_mpi.regular import read_summed

Table = tuple[tuple[int, float], ...]  # (samples or bytes, seconds), rising
TABLES = ("gradient", "value", "chunk", "select", "take")


def between(table: Sequence[tuple[int, float]], at: float) -> float:
    """Piecewise linear in the table; below it the first value, beyond it along the last piece, which does not fall."""
    if at <= table[0][0] or len(table) == 1:
        return table[0][1]
    high = next((i for i, (x, _) in enumerate(table) if x >= at), len(table) - 1)
    (x0, y0), (x1, y1) = table[high - 1], table[high]
    slope = (y1 - y0) / (x1 - x0)
    return y1 + max(slope, 0.0) * (at - x1) if at > x1 else y0 + slope * (at - x0)


@dataclass(frozen=True)
class Parts:
    """An overlapped gradient: the bytes of its parts, and for some sample counts when each is final and all is done."""

    bucket: int  # bytes that a part was to have at least
    bytes: tuple[int, ...]
    ready: tuple[tuple[int, tuple[float, ...]], ...]  # (samples, seconds from the start, the last for the whole gradient)


@dataclass(frozen=True)
class Compute:
    """One rank's constants while ``ranks`` ranks of a node compute; seconds."""

    ranks: int
    n_params: int
    itemsize: int
    numbers: int  # of a sample
    piece: int  # samples of a forward and backward pass
    ready_bytes: int  # of a rank: current samples beyond it are normalised anew at every evaluation
    gradient: Table  # one piece, written
    value: Table
    chunk: Table  # one piece, added to a gradient
    select: Table  # a fresh minibatch
    take: Table  # normalising samples
    vector: Mapping[str, float]  # an operation on n numbers; "combine": each vector of a weighted sum of several
    optimizer: Mapping[str, float]
    lsr1: tuple[float, ...]  # a step with 0, 1, ... pairs
    lsr1_begin: float  # inner products of a gradient with a full memory
    message: float  # what a message costs beside its sum
    parts: Parts

    def gradients(self, samples: float) -> float:
        """One gradient: the first piece is written, all others are added."""
        return self._pieces(self.gradient, self.chunk, samples)

    def added(self, samples: float) -> float:
        """One gradient that is added to another one."""
        return self._pieces(self.chunk, self.chunk, samples)

    def values(self, samples: float) -> float:
        """One loss without a gradient."""
        return self._pieces(self.value, self.value, samples)

    def ready(self, samples: float) -> tuple[float, ...]:
        """When each part of an overlapped gradient is final, and the whole: parts leave during the last piece alone."""
        whole = max(0, math.ceil(samples / self.piece) - 1)
        columns = range(len(self.parts.bytes) + 1)
        tables = [[(size, row[i]) for size, row in self.parts.ready] for i in columns]
        before = whole * between(self.chunk, self.piece)
        return tuple(before + between(table, samples - whole * self.piece) for table in tables)

    def _pieces(self, first: Table, later: Table, samples: float) -> float:
        if samples <= self.piece:
            return between(first, samples) if samples > 0 else 0.0
        whole, rest = divmod(samples - self.piece, self.piece)
        return between(first, self.piece) + whole * between(later, self.piece) + (between(later, rest) if rest else 0.0)


@dataclass(frozen=True)
class Sums:
    """Sums over ``ranks`` ranks: bytes and seconds, the package's and bare MPI's, and the network that fits the latter."""

    ranks: int
    ours: Table
    bare: Table
    latency: float
    bandwidth: float


@dataclass(frozen=True)
class Machine:
    """What was measured, by rank count; where nothing was, the nearest rank count serves."""

    compute: Mapping[int, Compute]
    sums: Mapping[int, Sums] = field(default_factory=dict)

    def rank(self, ranks: int) -> Compute:
        """One rank's constants while ``ranks`` compute."""
        return self.compute[nearest(self.compute, ranks)]

    def sum_seconds(self, ranks: int, nbytes: int, bare: bool = False) -> float:
        """A blocking sum: read from the table where ``ranks`` were measured, else by the fit of the nearest; ValueError without any."""
        if ranks == 1:
            return 0.0
        if not self.sums:
            raise ValueError(f"there is no reduce-P{ranks}.json: mpiexec -n {ranks} apts-mpi bench reduce --out reduce-P{ranks}.json")
        found = self.sums[nearest(self.sums, ranks)]
        if found.ranks == ranks:
            return between(found.bare if bare else found.ours, nbytes)
        return Network(found.latency, found.bandwidth, ranks).seconds(nbytes)

    def note(self, ranks: int) -> str:
        """Which measurements stand in for ``ranks`` ranks; empty if they were made with as many."""
        told = [("computing", nearest(self.compute, ranks))]
        if ranks > 1 and self.sums:
            told.append(("sums", nearest(self.sums, ranks)))
        return "; ".join(f"{what} at P = {ranks} as measured at P = {found}" for what, found in told if found != ranks)


def nearest(known: Mapping[int, object], ranks: int) -> int:
    """The rank count in ``known`` with the smallest ratio to ``ranks``; of two the larger."""
    return min(known, key=lambda found: (abs(math.log(found / ranks)), -found))


def read_machine(folder: Path) -> Machine | None:
    """compute-P<P>.json and reduce-P<P>.json of a folder; None without the former. ValueError names a damaged file."""
    compute = [_read(path, "compute", _compute) for path in sorted(folder.glob("compute-P*.json"))]
    sums = [_read(path, "reduce", _sums) for path in sorted(folder.glob("reduce-P*.json"))]
    if not compute:
        return None
    if len({each.n_params for each in compute}) > 1:
        raise ValueError(f"{folder}: the compute files are of different models, n = {sorted({each.n_params for each in compute})}")
    return Machine({each.ranks: each for each in compute}, {each.ranks: each for each in sums})


def _read(path: Path, bench: str, make: Any) -> Any:
    try:
        tree = read_summed(path)
        if (tree["format"], tree["bench"]) != ("apts-mpi bench", bench):
            raise ValueError(f"it is of bench {tree['bench']}")
        found = make(tree)
        if path.stem.rpartition("-P")[2] != str(found.ranks):
            raise ValueError(f"it was measured with {found.ranks} ranks")
        return found
    except (KeyError, TypeError, IndexError, ValueError) as error:
        told = f"{path} does not hold what apts-mpi bench {bench} writes ({error})"
        raise ValueError(f"{told}; delete it, and apts-mpi scale run measures again") from None


def _compute(tree: Mapping[str, Any]) -> Compute:
    tables: dict[str, Any] = {name: tuple((int(row["samples"]), float(row["median"])) for row in tree[name]) for name in TABLES}
    named = {kind: {name: float(cell["median"]) for name, cell in tree[kind].items()} for kind in ("vector", "optimizer")}
    vector = named["vector"]
    vector.setdefault("checksum", 0.0)  # not measured before sums were checked
    vector.setdefault("reach", 2 * vector["add"] + 2 * vector["dot"])  # these, before one kernel made them
    vector["combine"] /= int(tree["combine_rows"])
    parts, steps = tree["parts"], tree["lsr1"]["steps"]
    ready = tuple((int(row["samples"]), (*map(float, row["ready"]), float(row["median"]))) for row in parts["rows"])
    whole: dict[str, Any] = {name: int(tree[name]) for name in ("ranks", "n_params", "itemsize", "numbers", "piece", "ready_bytes")}
    return Compute(
        **whole, **tables, vector=named["vector"], optimizer=named["optimizer"],
        lsr1=tuple(float(step["median"]) for step in steps), lsr1_begin=float(tree["lsr1"]["begin"]["median"]),
        message=float(tree["message"]["scalars"]["median"]), parts=Parts(int(parts["bucket"]), tuple(map(int, parts["bytes"])), ready),
    )  # fmt: skip


def _sums(tree: Mapping[str, Any]) -> Sums:
    ours, bare = (tuple((int(row["bytes"]), float(row[name]["median"])) for row in tree["results"]) for name in ("ours_s", "base_s"))
    return Sums(int(tree["ranks"]), ours, bare, float(tree["fit"]["latency_s"]), float(tree["fit"]["bandwidth_bytes_per_s"]))
