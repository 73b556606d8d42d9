"""A folder with one of each file that the package writes, which file is read by what, and ways to damage a file."""

from __future__ import annotations

import json
import math
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from checkpoint_cases import make_checkpoint
from points_cases import point
from shard_cases import make
from test_records import FACTS, PARAMETERS, completion, extra, info, timer_rows

from apts_mpi.contracts import Status
from apts_mpi.regular import with_sum
from apts_mpi.settings import resolve, to_toml
from apts_mpi.storage.records import RunDirectory
from apts_mpi.study.attempt import Attempt, write_attempt
from apts_mpi.study.points import Points, to_json

MEASURED = Path(__file__).parents[2] / "benchmarks" / "results" / "mnist" / "calibration"
STUDY = """name = "one"
ranks = [1, 2]
scaling = ["strong"]
[settings]
data.path = "set"
[[method]]
name = "SGD"
method = "sgd"
data.batch = 128
"""


@dataclass(frozen=True)
class Target:
    """A file, and what reads it."""

    file: str  # in the folder; with *: the first of these
    reader: str
    exact: bool = True  # the same values or an error; else the file is for people or from people: no crash, no more


TARGETS = [
    Target("set/manifest.json", "dataset"),
    Target("set/train-00000-of-*.h5", "dataset"),
    Target("set/test-00000-of-*.h5", "dataset"),
    Target("set/train-00001-of-*.h5", "verified"),
    Target("run/parameters.h5", "parameters"),
    Target("run/records.h5", "records"),
    Target("run/checkpoints/000001.h5", "checkpoint"),
    Target("run/checkpoints/000001.json", "checkpoint"),
    Target("run/completion.json", "completion"),
    Target("run/lock", "lock"),
    Target("run/provenance.json", "show"),
    Target("run/records.csv", "show"),
    Target("run/timing.csv", "show"),
    Target("run/config.toml", "show"),
    Target("run/config.toml", "config", exact=False),
    Target("cut/provenance.json", "show cut", exact=False),  # of a run that has not ended, so that nothing vouches for them
    Target("cut/records.csv", "show cut", exact=False),
    Target("cut/config.toml", "show cut", exact=False),
    Target("study/study.toml", "study", exact=False),
    Target("study/points.json", "points"),
    Target("study/calibration/compute-P1.json", "machine"),
    Target("study/calibration/reduce-P2.json", "machine"),
    Target("study/tune.json", "tuning"),
    Target("study/runs/one.attempt.json", "attempt"),
]


def build(folder: Path) -> RunDirectory:
    """One of each; the run is finished and its folder taken again, so that there is a lock: close what is returned."""
    make(folder)
    run = RunDirectory.create(folder / "run", "train", to_toml(resolve().config), FACTS)
    for k in range(5):
        run.append(info(k, status=Status.RUNNING), extra(k), {"local solve": 0.5})
    run.finish(completion(5), PARAMETERS, timer_rows())
    finished = (folder / "run" / "completion.json").read_bytes()
    again = RunDirectory.resume(folder / "run", (folder / "run" / "records.csv").read_bytes(), to_toml(resolve().config), {}, reopen=True)
    (folder / "run" / "completion.json").write_bytes(finished)
    shutil.copytree(folder / "run", folder / "cut", ignore=shutil.ignore_patterns("completion.json", "lock", "*.h5", "timing.csv"))
    make_checkpoint(folder / "run")
    _study(folder / "study")
    return again


def _study(folder: Path) -> None:
    (folder / "runs").mkdir(parents=True)
    (folder / "study.toml").write_text(STUDY)
    rows = tuple(point(ranks=ranks, repetition=k) for ranks in (1, 2) for k in range(2))
    (folder / "points.json").write_text(to_json(Points("one", "One", 1, 5, math.inf, 4, (), rows, STUDY, {})))
    (folder / "calibration").mkdir()
    for name in ("compute-P1.json", "compute-P2.json", "reduce-P2.json"):
        shutil.copyfile(MEASURED / name, folder / "calibration" / name)
    cost = {"passes": 12.5, "reductions": 100, "bytes": 12345, "seconds": 3.25}
    (folder / "tune.json").write_text(json.dumps(with_sum({"method": "sgd", "best_lr": 0.1, "cost": cost, "runs": [{}, {}]}), indent=2))

    class Run:
        id, folder = "one", Path()

    Run.folder = folder / "runs" / "one"
    write_attempt(Run(), Attempt("one", 0, 12.5, 1e10, False, "node", "2026-01-01T00:00:00+00:00", "mpiexec -n 2"))  # type: ignore[arg-type]


def path_of(folder: Path, target: Target) -> Path:
    return next(iter(sorted(folder.glob(target.file))))


def damaged(raw: bytes, rng: random.Random) -> bytes:
    """One of the ways in which disks, networks and people change a file."""
    kind = rng.choice(list(DAMAGE))
    return DAMAGE[kind](raw, rng)


def _flip(raw: bytes, rng: random.Random) -> bytes:
    out = bytearray(raw)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def _byte(raw: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(raw))
    return raw[:place] + bytes([rng.randrange(256)]) + raw[place + 1 :]


def _digit(raw: bytes, rng: random.Random) -> bytes:
    """Another digit in place of one: in text the most dangerous change."""
    places = [k for k, byte in enumerate(raw) if chr(byte).isdigit()]
    place = rng.choice(places or [0])
    return raw[:place] + str(rng.randrange(10)).encode() + raw[place + 1 :]


def _block(raw: bytes, rng: random.Random) -> tuple[int, int]:
    size = min(len(raw), 1 << rng.randrange(13))
    start = rng.randrange(len(raw) - size + 1)
    return start, start + size


def _zeroed(raw: bytes, rng: random.Random) -> bytes:
    a, b = _block(raw, rng)
    return raw[:a] + bytes(b - a) + raw[b:]


def _noise(raw: bytes, rng: random.Random) -> bytes:
    a, b = _block(raw, rng)
    return raw[:a] + rng.randbytes(b - a) + raw[b:]


def _missing(raw: bytes, rng: random.Random) -> bytes:
    a, b = _block(raw, rng)
    return raw[:a] + raw[b:]


def _twice(raw: bytes, rng: random.Random) -> bytes:
    a, b = _block(raw, rng)
    return raw[:b] + raw[a:]


def _swapped(raw: bytes, rng: random.Random) -> bytes:
    size = min(len(raw) // 2, 1 << rng.randrange(11))
    a = rng.randrange(len(raw) - 2 * size + 1)
    b = rng.randrange(a + size, len(raw) - size + 1)
    return raw[:a] + raw[b : b + size] + raw[a + size : b] + raw[a : a + size] + raw[b + size :]


DAMAGE: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "flip": _flip,
    "byte": _byte,
    "digit": _digit,
    "truncated": lambda raw, rng: raw[: rng.randrange(len(raw))],
    "zeroed": _zeroed,
    "noise": _noise,
    "missing": _missing,
    "twice": _twice,
    "swapped": _swapped,
    "appended": lambda raw, rng: raw + rng.choice((rng.randbytes(rng.randrange(1, 2000)), bytes(rng.randrange(1, 5000)), raw)),
}
