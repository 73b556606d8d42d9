"""What a study measured, run by run: the one form that statistics, cost model, figures and tables read.

``scale collect`` makes it from the run directories (``study/collect.py``) and keeps it in points.json.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from apts_mpi.regular import SUM, read_bytes, sum_holds, with_sum

FORMAT = "apts-mpi study"
FORMAT_VERSION = 1
POINTS = "points.json"
CURVES = ("passes", "bytes", "seconds", "loss", "accuracy")  # of Point.curve


@dataclass(frozen=True)
class Point:
    """One finished run; nan: does not exist.

    Seconds are rank 0's, which the sums keep in step with the others, without test evaluations and the writing of records.
    """

    run: str
    method: str  # name in the study
    kind: str  # apts, sgd, ...; or the program's name
    network: str  # emulated; empty: the real one
    scalings: tuple[str, ...]
    ranks: int
    nodes: int
    subdomains: int
    per_rank: int  # subdomains of a rank that the study asked for; strong scaling has as many times the most ranks
    samples: int  # |D| over all ranks
    batch: int  # minibatch over all ranks; the whole |D| in full batch
    seed: int
    repetition: int
    n_params: int
    oversubscribed: bool  # more threads than cores: its seconds say nothing about speed
    noisy: bool  # the machine's copy bandwidth was more than 15 % below its median just before
    status: str
    iterations: int  # outer
    iteration_seconds: float  # median over the outer iterations behind the first three
    iteration_low: float  # 95 % interval of that median, within the run
    iteration_high: float
    run_seconds: float
    passes: float  # gradient evaluations, in passes over |D|
    value_passes: float
    reductions: int  # n-vectors
    messages: int  # of one rank
    bytes: int  # payload of one rank
    local_iters: float  # local iterations of a subdomain in an outer iteration
    loss: float
    accuracy: float
    target_iterations: float  # until the target accuracy was seen; nan if it was not
    target_seconds: float
    target_passes: float
    target_reductions: float
    target_bytes: float
    phases: Mapping[str, float]  # region -> seconds of an outer iteration, mean over ranks
    curve: Mapping[str, list[float]]  # CURVES, thinned
    flops_per_gradient: float  # of one sample
    machine: Mapping[str, Any]  # provenance that the methods paragraph quotes

    @property
    def seconds_per_pass(self) -> float:
        """Seconds for as many gradient evaluations as |D| has samples."""
        return self.run_seconds / self.passes if self.passes else math.nan


@dataclass(frozen=True)
class Points:
    """All that is known of a study when the report is written."""

    name: str
    title: str
    threads: int
    repetitions: int
    target_accuracy: float
    planned: int  # runs
    failed: tuple[str, ...]  # runs that were tried and did not come to their end; planned - failed - points: not made yet
    points: tuple[Point, ...]
    study: str  # the study file's text
    tuning: Mapping[str, Mapping[str, Any]]  # method -> cost of the search for its learning rate, as in tune.json

    def of(self, *, method: str = "", scaling: str = "", network: str | None = None) -> list[Point]:
        """Those that match what is given."""
        return [
            p for p in self.points
            if (not method or p.method == method) and (not scaling or scaling in p.scalings) and (network is None or p.network == network)
        ]  # fmt: skip

    @property
    def methods(self) -> list[str]:
        """In the order of the study file."""
        return list(dict.fromkeys(p.method for p in self.points))


def to_json(points: Points) -> str:
    """JSON text; null for numbers that are not finite."""
    tree = {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(points)}
    return json.dumps(with_sum(_plain(tree)), indent=1, allow_nan=False) + "\n"


def from_json(text: str, source: str = POINTS) -> Points:
    """What ``to_json`` wrote; ValueError names ``source``."""
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{source} is not JSON: {error}") from None
    if not isinstance(tree, dict) or (tree.get("format"), tree.get("format_version")) != (FORMAT, FORMAT_VERSION):
        raise ValueError(f"{source} was not written by this version of apts-mpi scale collect; collect again")
    if SUM in tree and not sum_holds(tree):
        raise ValueError(f"{source} is damaged: its values are not those that were written; collect again")
    try:
        rows = [_point(entry) for entry in tree["points"]]
        rest = {entry.name: tree[entry.name] for entry in fields(Points) if entry.name != "points"}
    except (KeyError, TypeError) as error:
        raise ValueError(f"{source} lacks {error}; collect again") from None
    rest["target_accuracy"] = math.inf if rest["target_accuracy"] is None else rest["target_accuracy"]
    return Points(points=tuple(rows), **{**rest, "failed": tuple(rest["failed"])})


def read_points(folder: Path) -> Points:
    """points.json of a study's folder; FileNotFoundError says what to type."""
    path = folder / POINTS
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; apts-mpi scale collect STUDY.toml makes it")
    return from_json(read_bytes(path).decode("utf-8", "replace"), str(path))


def _point(entry: Mapping[str, Any]) -> Point:
    values = {each.name: _known(entry[each.name]) for each in fields(Point)}
    return Point(**{**values, "scalings": tuple(values["scalings"])})


def _known(value: Any) -> Any:
    """null as nan, in lists and tables too."""
    if value is None:
        return math.nan
    if isinstance(value, list):
        return [_known(entry) for entry in value]
    return {key: _known(entry) for key, entry in value.items()} if isinstance(value, dict) else value


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value
