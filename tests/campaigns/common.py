"""What the campaigns share: arguments, runs under mpiexec that can be hurt, and the record of what was found."""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), *(str(ROOT / "tests" / name) for name in ("launch", "faults"))]

from recording import mpi_of  # noqa: E402
from same_bits import ENVIRONMENT, MPIEXEC  # noqa: E402

from apts_mpi import provenance  # noqa: E402
from apts_mpi.storage.convert import convert  # noqa: E402

__all__ = ["MPIEXEC", "Campaign", "Job", "arguments", "make_data", "on_ranks", "pids_of"]

LIMIT = 10.0  # s that a fault may take until all ranks have ended
START = 90.0  # s that a program may take to start, on a busy machine
FACTS = ("package_version", "source_sha256", "git_commit", "versions", "system", "cpu", "started_utc", "command")
RANK = (b"PMI_RANK=", b"OMPI_COMM_WORLD_RANK=")


def arguments(doc: str | None, cases: int) -> argparse.ArgumentParser:
    """The options that every campaign has; ``cases`` is the nightly number."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=cases, help=f"how many; default {cases}")
    parser.add_argument("--seed", type=int, default=0, help="of all random choices; when processes run is not ours to choose")
    parser.add_argument("--first", type=int, default=0, metavar="CASE", help="begin with this case")
    parser.add_argument("--out", metavar="FILE", help="JSON to write")
    return parser


def make_data(folder: Path, samples: int = 320) -> None:
    """A data set in folder/set: small images in classes, with so many wrong labels that no run comes to rest."""
    rng, arrays = np.random.default_rng(1), {}
    for split, size in (("train", samples), ("test", 40)):
        labels = rng.integers(0, 3, size)
        images = rng.integers(0, 100, (size, 1, 3, 4), dtype=np.uint8)
        images[np.arange(size), 0, labels] += 150
        arrays |= {f"x_{split}": images, f"y_{split}": np.where(rng.random(size) < 0.4, rng.integers(0, 3, size), labels)}
    np.savez(folder / "raw.npz", **arrays)
    convert("npz", folder / "raw.npz", folder / "set", shards=3)


class Campaign:
    """Counts, failures, and the last word."""

    def __init__(self, name: str, args: argparse.Namespace) -> None:
        self.name, self.args = name, args
        self.counts: Counter[str] = Counter()
        self.facts: dict[str, Any] = {}  # measured beside the counts
        self.failures: list[str] = []
        self.slowest = 0.0  # s from a fault until all had ended, or had gone on
        self._began, self._out = time.monotonic(), sys.stdout  # a case may have the output of a run redirected when it says something

    def chance(self, case: int) -> random.Random:
        """The random choices of a case."""
        return random.Random(f"{self.args.seed}-{case}")

    def check(self, good: bool, case: int, words: str) -> bool:
        """Count a failure unless ``good``, and say how to see it again."""
        if not good:
            self.failures.append(f"case {case}: {words}")
            self.say(f"FAILED case {case} (again: --seed {self.args.seed} --first {case} --cases 1): {words}")
        return good

    def took(self, seconds: float) -> None:
        """A fault took so long."""
        self.slowest = max(self.slowest, seconds)

    def say(self, words: str) -> None:
        """A line, at once."""
        print(f"{time.monotonic() - self._began:7.1f} s  {words}", file=self._out, flush=True)

    def progress(self, done: int, every: int) -> None:
        """A line for so many cases."""
        if done % every == 0:
            self.say(f"{done} cases; {', '.join(f'{count} {name}' for name, count in sorted(self.counts.items()))}")

    def finish(self, verdict: str, good: bool = True) -> int:
        """The verdict, the JSON, the status."""
        good = good and not self.failures
        seconds = time.monotonic() - self._began
        counts = ", ".join(f"{count} {name}" for name, count in sorted(self.counts.items()))
        if self.args.out:
            facts = provenance.collect(
                config_sha256="", seed=self.args.seed, data="", mpi_library="", hosts=[socket.gethostname()], threads=1, devices=["cpu"],
                n_params=0, subdomains=0,
            )  # fmt: skip
            found = {
                "format": "apts-mpi campaign", "name": self.name, "good": good, "verdict": verdict, "counts": dict(self.counts),
                "failures": self.failures, "slowest_fault_s": round(self.slowest, 3), "seconds": round(seconds, 1), "seed": self.args.seed,
                **self.facts, "provenance": {name: facts[name] for name in FACTS} | {"mpi": mpi_of(sys.executable)},
            }  # fmt: skip
            Path(self.args.out).parent.mkdir(parents=True, exist_ok=True)
            Path(self.args.out).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        word = "good" if good else "FAILED"
        print(f"{self.name}: {word}: {verdict}; {counts}; slowest fault {self.slowest:.1f} s, {seconds:.0f} s in all")
        return int(not good)


class Job:
    """A program on several ranks in a session of its own, whose output goes into a file."""

    def __init__(self, folder: Path, ranks: int, words: Sequence[str], **variables: str) -> None:
        self.ranks, self._log = ranks, folder / "output"
        self.pids: dict[int, int] = {}  # process of each rank, once known
        path = os.pathsep.join([str(ROOT), str(folder)])
        with open(self._log, "wb") as output:
            self.process = subprocess.Popen(
                [str(MPIEXEC), "-n", str(ranks), sys.executable, *words], cwd=folder, stdin=subprocess.DEVNULL, stdout=output,
                stderr=subprocess.STDOUT, start_new_session=True, env={**os.environ, **ENVIRONMENT, "PYTHONPATH": path, **variables},
            )  # fmt: skip

    @property
    def text(self) -> str:
        """What was printed so far."""
        return self._log.read_text(errors="replace")

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    def find(self, limit: float = START) -> bool:
        """Look until the process of every rank is known; False if the job ended before."""
        until = time.monotonic() + limit
        while len(self.pids) < self.ranks and not self.ended and time.monotonic() < until:
            self.pids |= pids_of(self.process.pid)
            time.sleep(0.005)
        return len(self.pids) == self.ranks

    def kill(self, rank: int) -> bool:
        """SIGKILL for a rank; whether it was still there."""
        try:
            os.kill(self.pids[rank], signal.SIGKILL)
        except ProcessLookupError:
            return False
        return True

    def alive(self, rank: int) -> bool:
        """Whether the rank, whose process is known, is still there."""
        return _alive(self.pids[rank])

    def wait(self, limit: float = LIMIT) -> int | None:
        """The status when launcher and ranks have ended; None, with nothing left running, if they have not within ``limit`` s."""
        until = time.monotonic() + limit
        while time.monotonic() < until:
            if self.ended and not any(map(_alive, self.pids.values())):
                return self.process.returncode
            time.sleep(0.01)
        self.end()
        return None

    def end(self) -> None:
        """Leave nothing running."""
        self.pids |= pids_of(self.process.pid)
        for pid in [*self.pids.values(), self.process.pid]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait()


def on_ranks(ranks: int, program: str, limit: float) -> int:
    """Start ``program`` again, with this process's arguments, on so many ranks; its status, 1 if it was ended after ``limit`` s."""
    variables = {**os.environ, **ENVIRONMENT, "PYTHONPATH": os.pathsep.join([str(ROOT), str(Path(program).parent)])}
    command = [str(MPIEXEC), "-n", str(ranks), sys.executable, "-u", program, *sys.argv[1:]]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, env=variables)
    try:
        return process.wait(limit)
    except subprocess.TimeoutExpired:
        print(f"still running after {limit:g} s: ended", flush=True)
        for pid in [*pids_of(process.pid).values(), process.pid]:
            os.kill(pid, signal.SIGKILL)
        process.wait()
        return 1


def pids_of(launcher: int) -> dict[int, int]:
    """The processes below ``launcher`` that are ranks, by rank."""
    parents: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                rest = Path(f"/proc/{entry}/stat").read_text(errors="replace").rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(entry)] = int(rest[1])
    below, found = {launcher}, dict[int, int]()
    for _ in range(6):
        below |= {pid for pid, parent in parents.items() if parent in below}
    for pid in below - {launcher}:
        try:
            variables, words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"), Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        ranks = [int(text.partition(b"=")[2]) for text in variables if text.startswith(RANK)]
        if ranks and b"python" in words.split(b"\0")[0]:
            found[ranks[0]] = pid
    return found


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
