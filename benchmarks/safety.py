"""What safety costs: the run phase with all of it on against all of it off, on two ranks of one thread.

    python benchmarks/safety.py [--data data/mnist] [--seconds 11] [--rounds 4] [--only PART ...] [--out FILE.json]

On: checkpoints (``auto``), theta compared every 20 iterations, checksums of all sums, the watchdog; --only turns on some of these alone.
Off: none. Watched: all but checkpoints. The three run in turn in the same processes, forwards and backwards, for as many iterations as
the off run does in ``--seconds``. Cases: presets `default` and `lsr1` on minibatches of 10,000, and SGD on minibatches of 128.

A run of 11 s with ``auto`` writes two checkpoints, after 10 s and at its end: more often than one that lasts for hours. So there are two
ratios: ``all on`` as measured, and ``one a minute``, where what the checkpoints have cost, on less watched, counts as often as there
are minutes in a run rather than checkpoints. Both are judged: median of the rounds at most 1.03. Takes about eight minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from launched import mpiexec

from apts_mpi import provenance
from apts_mpi.bench.measure import compared
from apts_mpi.config import Config
from apts_mpi.parallel import launch
from apts_mpi.presets import preset
from apts_mpi.rundir import CHECKPOINTS

ROOT = Path(__file__).resolve().parents[1]
RANKS, BAR = 2, 1.03
RATIOS = ("all on", "one a minute")
LIMIT = 1800.0  # s for all
PARTS = ("checkpoint", "verify", "checksum", "watchdog")
CASES: dict[str, dict[str, Any]] = {
    "default, minibatch 10,000": {"name": "default", "data": {"batch": 10_000}},
    "lsr1, minibatch 10,000": {"name": "lsr1", "data": {"batch": 10_000}},
    "sgd, minibatch 128": {"name": "default", "method": "sgd", "data": {"batch": 128, "overlap": 0.0}, "baseline": {"lr": 0.05}},
}
FACTS = ("package_version", "source_sha256", "git_commit", "versions", "system", "cpu", "started_utc", "command")


def settings(case: dict[str, Any], data: str, run: Path, iterations: int, on: tuple[str, ...]) -> Config:
    """A run with the parts ``on``."""
    return preset(**{
        **case, "data": {**case["data"], "path": data}, "stop": {"epochs": 0, "iterations": iterations},
        "checkpoint": {"every": "auto" if "checkpoint" in on else "off"},
        "safety": {"verify": 20 if "verify" in on else 0, "checksum": "checksum" in on, "watchdog": "watchdog" in on},
        "run": {"dir": str(run), "device": "cpu", "threads": 1, "monitor": "none", "evaluate": 0},
    })  # fmt: skip


class Bench:
    """Runs on all ranks, timed by the slowest."""

    def __init__(self, comm: Any, folder: Path, data: str) -> None:
        self._comm, self._folder, self._data, self._runs = comm, folder, data, 0
        self.checkpoints = 0  # in the last run

    def seconds(self, case: dict[str, Any], iterations: int, on: tuple[str, ...]) -> float:
        """Of the run phase; every rank calls."""
        from apts_mpi.train import run_training

        run = self._folder / f"run-{self._runs}"
        self._runs += 1
        result = run_training(settings(case, self._data, run, iterations, on), self._comm)
        assert len(result.steps) == iterations, f"ended as {result.status.value} after {len(result.steps)} iterations"
        if self._comm.rank == 0:
            self.checkpoints = max((int(path.stem) for path in (run / CHECKPOINTS).glob("*.json")), default=0)
            shutil.rmtree(run)
        return max(row[0] for row in self._comm.gather([result.seconds]))

    def in_turn(self, case: dict[str, Any], seconds: float, rounds: int, on: tuple[str, ...]) -> dict[str, Any]:
        """Off, watched and on, forwards and backwards; every rank calls."""
        iterations, took = 4, self.seconds(case, 4, PARTS)  # pages, caches, imports
        while took < seconds / 4:
            iterations *= 2
            took = self.seconds(case, iterations, ())
        iterations = round(iterations * seconds / took)
        kinds = {"off": (), "watched": tuple(part for part in on if part != "checkpoint"), "on": on}
        times: dict[str, list[float]] = {kind: [] for kind in kinds}
        written = 0
        for index in range(rounds):
            for kind in kinds if index % 2 else reversed(kinds):
                times[kind].append(self.seconds(case, iterations, kinds[kind]))
                written = max(written, self.checkpoints)
        scaled = [watched + (every - watched) * (every / 60) / max(written, 1)
                  for watched, every in zip(times["watched"], times["on"], strict=True)]  # fmt: skip
        return {
            "all on": compared(times["on"], times["off"]), "one a minute": compared(scaled, times["off"]),
            "iterations": iterations, "checkpoints": written, "seconds": times,
        }  # fmt: skip


def told(name: str, found: dict[str, Any]) -> str:
    """A line for people."""
    texts = []
    for kind in RATIOS:
        ratio = found[kind]["ratio"]
        low, high = ratio["interval_95"]
        texts.append(f"{kind} {ratio['median']:.4f} [{low:.4f}, {high:.4f}] {'met' if ratio['median'] <= BAR else 'NOT MET'}")
    base = found["all on"]["base_s"]["median"]
    return f"{name}: {'; '.join(texts)}; off {base:.2f} s, {found['iterations']} iterations, {found['checkpoints']} checkpoints"


def inside(args: argparse.Namespace) -> int:
    """On every rank."""
    comm, began, results = launch.start(), time.monotonic(), dict[str, Any]()
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(comm, Path(comm.share(name)), args.data)
        for case, sections in CASES.items():
            results[case] = bench.in_turn(sections, args.seconds, args.rounds, tuple(args.only))
            if comm.rank == 0:
                print(told(case, results[case]), flush=True)
        comm.barrier()
    met = all(found[kind]["ratio"]["median"] <= BAR for found in results.values() for kind in RATIOS)
    if comm.rank == 0:
        print(f"safety: {'met' if met else 'NOT MET'} in {time.monotonic() - began:.0f} s")
        if args.out:
            facts = provenance.collect(
                config_sha256="", seed=0, data=args.data, mpi_library=comm.library, hosts=[socket.gethostname()], threads=1,
                devices=["cpu"], n_params=0, subdomains=RANKS,
            )  # fmt: skip
            about = {key: facts[key] for key in FACTS} | {"mpi": comm.library, "load": os.getloadavg()}
            found = {"format": "apts-mpi safety", "bar": BAR, "met": met, "on": args.only, "results": results, "provenance": about}
            Path(args.out).parent.mkdir(parents=True, exist_ok=True)
            Path(args.out).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    met = bool(comm.share("yes" if met else ""))
    launch.finish(comm)
    return int(not met)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = [str(ROOT / "data" / name) for name in ("mnist", "digits") if (ROOT / "data" / name).is_dir()]
    parser.add_argument("--data", default=(known or ["data/digits"])[0], help="folder of the data set; default %(default)s")
    parser.add_argument("--seconds", type=float, default=11.0, help="of a run; below 10 auto writes only the last checkpoint")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="what is on in the runs that have something on")
    parser.add_argument("--out", metavar="FILE", help="JSON to write")
    args = parser.parse_args()
    if launch.launched(os.environ):
        return inside(args)
    command = [mpiexec(), "-n", str(RANKS), sys.executable, str(Path(__file__).resolve()), *sys.argv[1:]]
    return subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=LIMIT).returncode


if __name__ == "__main__":
    sys.exit(main())
