"""Bars 6 and 7: time per gradient evaluation on an emulated network, and weak scaling."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from launched import launch
from verdicts import Row, of_pairs

STEPS = str(Path(__file__).parent / "steps.py")
ON_WIRE = "--latency 50e-6 --bandwidth 1.25e9"
BARS_6 = {"sgd": 2.2, "overlapped": 1.9}
METHODS = ("apts-5", "apts-10", "apts-20", "apts-first-5", "sweep", "sweep-chunks")
JUDGED = "apts-5"
BARS_7 = {"weak": 0.95, "cpu": 1.08}
CASES_7 = ("lsr1", "sweep", "sgd")
CROWD = 8  # ranks


def steps(ranks: int, options: str, environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What ``steps.py`` found."""
    with TemporaryDirectory() as name:
        path = Path(name) / "steps.json"
        launch(ranks, [STEPS, "--out", str(path), *options.split()], environment)
        found: dict[str, Any] = json.loads(path.read_text())
        return found


def bar_6(quick: bool) -> Iterator[Row]:
    """Per gradient evaluation against SGD, blocking and overlapped, on a network of 2 and of 64 ranks."""
    size = "--rounds 5 --samples 64 --shape mnist --widths 64" if quick else "--rounds 25 --samples 64 --shape cifar10"
    for ranks in (2, 64):
        found = steps(2, f"{ON_WIRE} --network-ranks {ranks} --cases {','.join((*METHODS, *BARS_6))} {size} --gradients 8")
        for method in METHODS:
            for rival, bar in BARS_6.items():
                yield against(found, method, rival, ranks, bar if method == JUDGED else None)


def against(found: dict[str, Any], method: str, rival: str, ranks: int, bar: float | None) -> Row:
    """A rival's seconds per gradient evaluation over the method's."""
    cases = found["cases"]
    ours, theirs = cases[method]["seconds"], cases[rival]["seconds"]
    base = f"{rival} {1e3 * statistics.median(theirs):.2f} ms, {method} {1e3 * statistics.median(ours):.2f} ms per gradient"
    what = f"{rival} / {method}, n = {found['n_params']}, network of {ranks}"
    return of_pairs(6, what, theirs, ours, base, bar=bar, facts={"options": found["options"], method: cases[method], rival: cases[rival]})


def bar_7(quick: bool) -> Iterator[Row]:
    """Weak scaling from 1 to 2 ranks, what the machine alone loses there, and CPU seconds on 8 ranks that share the cores."""
    work = "--samples 64 --shape mnist --widths 16 --rounds 1" if quick else "--samples 2000 --shape mnist --rounds 3"
    options = f"{work} --batches 8 --gradients 8 --cases {','.join(CASES_7)}"
    runs: dict[str, list[dict[str, Any]]] = {"one": [], "two": [], "base": [], "crowd": []}
    for index in range(2 if quick else 15):
        kinds = list(runs)
        for kind in kinds if index % 2 else kinds[::-1]:
            runs[kind].append(_run(kind, options))
    for name in CASES_7:
        yield from _weak(name, runs, BARS_7["weak"])
    for name in CASES_7:
        one, crowd = (_medians(runs[kind], name, "cpu_seconds") for kind in ("one", "crowd"))
        base = f"{1e3 * statistics.median(one):.2f} ms CPU per gradient on 1 rank; {CROWD} ranks OVERSUBSCRIBED, with heavy yield"
        yield of_pairs(7, f"CPU seconds, {CROWD} ranks / 1 rank, {name}", crowd, one, base, bar=BARS_7["cpu"], at_least=False)


def _run(kind: str, options: str) -> dict[str, Any]:
    if kind == "crowd":
        return steps(CROWD, options, {"MPIR_CVAR_ENABLE_HEAVY_YIELD": "1"})
    return steps(1 if kind == "one" else 2, f"{options} --alone" if kind == "base" else options)


def _medians(runs: list[dict[str, Any]], name: str, what: str) -> list[float]:
    """Of each run the median of its rounds."""
    return [statistics.median(run["cases"][name][what]) for run in runs]


def _weak(name: str, runs: dict[str, list[dict[str, Any]]], bar: float | None) -> Iterator[Row]:
    """1 rank over 2; the same for two problems side by side that send nothing; and the first over the second."""
    one, two, side = (_medians(runs[kind], name, "seconds") for kind in ("one", "two", "base"))
    base = f"1 rank {1e3 * statistics.median(one):.2f} ms per gradient"
    yield of_pairs(7, f"weak scaling 1 -> 2 ranks, {name}", one, two, base, bar=bar)
    yield of_pairs(7, f"  of it the machine: two serial runs side by side, {name}", one, side, base)
    beside = f"side by side {1e3 * statistics.median(side):.2f} ms per gradient"
    yield of_pairs(7, f"  of it the package: side by side / 2 ranks, {name}", side, two, beside)
