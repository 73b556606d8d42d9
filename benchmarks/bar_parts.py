"""Bars 3, 4 and 5: what crosses the wire, what the communication layer adds, and DDP over gloo."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from launched import launch
from verdicts import Row

from apts_mpi.rundir import read_run
from apts_mpi.storage.convert import convert

HERE = Path(__file__).parent
LANES, LANE, FLAGS = 10, 26, 3  # scalars of the solver's message and its checks, cells of one, flags: docs/architecture.md
SMALL = LANES * LANE + FLAGS  # cells of a message without its vector
ITERATIONS = 6
SEARCH = 2  # small messages at least of a search for the first radius


@dataclass(frozen=True)
class Traffic:
    """What docs/method.md says of an outer iteration."""

    name: str
    options: str
    vectors: int
    small: int
    first: int = 0  # vectors more in the first iteration
    search: bool = False  # small messages more there, as many as it takes to find the first radius


FULL, MINI = "--data.batch 0", "--data.batch 160"
LSR1, NO_GLOBAL = "--preset lsr1", "--global_step.solver none"
TRAFFIC = (
    Traffic("lsr1, full batch", f"{LSR1} {FULL}", 3, 0, 1),
    Traffic("lsr1, minibatch", f"{LSR1} {MINI}", 4, 0),
    Traffic("lsr1, minibatch, global first", f"{LSR1} {MINI} --global_step.solver first", 3, 1),
    Traffic("lsr1, full batch, no global step", f"{LSR1} {FULL} {NO_GLOBAL}", 2, 0, 1),
    Traffic("lsr1, minibatch, no global step", f"{LSR1} {MINI} {NO_GLOBAL}", 2, 1),
    Traffic("paper, full batch", f"--preset paper {FULL}", 3, 0, 1),
    Traffic("paper, minibatch", f"--preset paper {MINI}", 4, 0),
    Traffic("default, full batch", FULL, 2, 0, 1, search=True),
    Traffic("default, minibatch", MINI, 2, 1, search=True),
    Traffic("sgd, minibatch", f"--method sgd {MINI}", 1, 0),
)


def write_set(folder: Path, samples: int = 640) -> Path:
    """A data set of small images in classes that a network can tell apart."""
    rng, arrays = np.random.default_rng(1), dict[str, Any]()
    for split, size in (("train", samples), ("test", 40)):
        labels = rng.integers(0, 3, size)
        images = rng.integers(0, 100, (size, 1, 3, 4), dtype=np.uint8)
        images[np.arange(size), 0, labels] += 150
        arrays |= {f"x_{split}": images, f"y_{split}": labels}
    np.savez(folder / "raw.npz", **arrays)
    convert("npz", folder / "raw.npz", folder / "set", shards=2)
    return folder / "set"


def counted(case: Traffic, folder: Path) -> Row:
    """A run on 2 ranks against the table: sums and bytes of each outer iteration must be exactly those."""
    run = folder / case.name.replace(" ", "-").replace(",", "")
    ends = f"--stop.epochs 0 --stop.iterations {ITERATIONS} --run.monitor none --run.device cpu"
    words = f"-m apts_mpi train --data.path {folder / 'set'} --run.dir {run} {ends} {case.options}"
    launch(2, words.split())
    found = read_run(run)
    assert found.completion is not None and found.completion.iterations == ITERATIONS, f"{case.name} ended early"
    vectors = np.full(ITERATIONS, case.vectors)
    vectors[0] += case.first
    columns, small = found.columns, np.full(ITERATIONS, case.small)
    sent = [np.diff(columns[name], prepend=0) for name in ("messages", "bytes")]
    if case.search:
        small[0] = max(sent[0][0] - vectors[0], case.small + SEARCH)
    nbytes = 4 * (vectors * (found.completion.n_params + SMALL) + small * SMALL)
    exact = (columns["reductions"] == vectors) & (sent[0] == vectors + small) & (sent[1] == nbytes)
    ratio = float(exact.mean())
    base = f"{case.vectors} vectors of {found.completion.n_params} numbers + {case.small} small, {int(nbytes[-1])} bytes an iteration"
    wrong = "" if exact.all() else f"; FOUND {columns['reductions'].tolist()} vectors, {sent[0].tolist()} sums, {sent[1].tolist()} bytes"
    return Row(3, f"iterations as stated / all, {case.name}", ratio, (ratio, ratio), base + wrong, bar=1.0)


def bar_3(quick: bool) -> Iterator[Row]:
    """Exactly the stated collectives and bytes."""
    with TemporaryDirectory() as name:
        write_set(Path(name))
        for case in TRAFFIC:
            yield counted(case, Path(name))


LENGTHS = (535_818, 1_841_162)
DOMINATED = 65_536  # bytes; below, a sum is mostly the interpreter's own time


def bar_4(quick: bool) -> Iterator[Row]:
    """The communication layer against the bare Allreduce of the same buffer."""
    seen: set[int] = set()
    with TemporaryDirectory() as name:
        for n in LENGTHS[:1] if quick else LENGTHS:
            path = Path(name) / f"{n}.json"
            launch(2, f"-m apts_mpi bench reduce --max-bytes {4 * n} --repeats {15 if quick else 40} --out {path}".split())
            for entry in json.loads(path.read_text())["results"]:
                nbytes = entry["bytes"]
                if nbytes not in seen:
                    seen.add(nbytes)
                    low, high = entry["ratio"]["interval_95"]
                    what = f"our sum / MPI_Allreduce, {nbytes} bytes" + ("" if nbytes >= DOMINATED else " (mostly Python)")
                    base = f"MPI_Allreduce {1e6 * entry['base_s']['median']:.1f} us"
                    bar = 1.10 if nbytes >= DOMINATED else None
                    yield Row(4, what, entry["ratio"]["median"], (low, high), base, bar, at_least=False, facts=entry)


def bar_5(quick: bool) -> Iterator[Row]:
    """Our per-step SGD against DistributedDataParallel over gloo."""
    size = "--steps 5 --repeats 5" if quick else "--steps 20 --repeats 30"
    text = launch(2, [str(HERE / "ddp_gloo.py"), *size.split()], allowed=(0, 1))
    for line in text.splitlines():
        if line.startswith("{"):
            found = json.loads(line)
            for kind in ("ours", "overlapped"):
                if f"{kind}_ratio" in found:
                    low, high = found[f"{kind}_ratio_95"]
                    what = f"DDP / our SGD{'' if kind == 'ours' else ', overlapped'}, B = {found['batch']}"
                    base = f"DDP {found['ddp_us']:.0f} us a step, theta {found['relative_difference_of_theta']:.1e} apart"
                    yield Row(5, what, found[f"{kind}_ratio"], (low, high), base, found["bar"] if kind == "ours" else None, facts=found)
