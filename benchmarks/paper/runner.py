"""Make the runs that are missing: each an ordinary ``train`` with a run directory, so that the same command goes on where it stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

from launched import mpiexec

import apts_mpi
from apts_mpi.provenance import source_sha256
from apts_mpi.rundir import last_checkpoint
from apts_mpi.storage.shards import open_dataset
from paper.cases import Case
from paper.curves import Curve, folder_of, jobs_file, read_curve, seeds_of
from paper.identity import differences
from paper.limits import Limits

WELL, LATER = (0, 3), 75  # exit codes of train: it ended, if with numbers that are none; it goes on when it is asked to
SHORT = 20.0  # seconds in which no run is worth beginning
Say = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """How runs are made."""

    runs: Path
    data: dict[str, str]  # folders of the data sets by Problem.data
    seeds: int = 3
    ranks: int = 2
    jobs: int = 1
    again: bool = False  # make runs of another source again
    more: tuple[str, ...] = ()  # options of train for every run
    deadline: float = float("inf")  # of time.monotonic()
    say: Say = field(default=print, repr=False)


@dataclass(frozen=True)
class Wanted:
    """One run of a case, and how far it must go: several tables may read it at several budgets."""

    case: Case
    seed: int
    folder: Path
    untils: tuple[Limits, ...]

    def enough(self, curve: Curve) -> bool:
        return all(curve.enough(until) for until in self.untils)

    @property
    def name(self) -> str:
        return f"{self.case.name} seed {self.seed}"


def wanted(cases: Iterable[Case], options: Options) -> list[Wanted]:
    """All cases with the first seed, then with the next; every run once, with all budgets that are asked of it."""
    known: dict[tuple[str, int], Wanted] = {}
    for case in cases:
        for seed in seeds_of(case, options.seeds):
            before = known.get((case.name, seed))
            if before is not None and before.case.words != case.words:
                raise ValueError(f"two cases are called {case.name}: {before.case.words} and {case.words}")
            untils = (*(before.untils if before else ()), case.until)
            known[case.name, seed] = Wanted(case, seed, folder_of(options.runs, case, seed), tuple(dict.fromkeys(untils)))
    return sorted(known.values(), key=lambda run: run.seed)


def words_of(run: Wanted, options: Options) -> list[str]:
    """Options of train, but for where to stop."""
    fixed = ["--data.path", options.data[run.case.problem.data], "--run.dir", str(run.folder), "--run.monitor", "none"]
    return [*run.case.words, *options.more, "--run.seed", str(run.seed), *fixed, "--checkpoint.keep", "1"]


@dataclass(frozen=True)
class Finding:
    """What is there of a run."""

    curve: Curve | None
    mine: bool  # it has these settings and data
    fresh: bool  # it was made by this source
    kept: bool  # a checkpoint is there to go on from


def look(run: Wanted, options: Options, source: str) -> Finding:
    """Read the folder of a run."""
    curve, data = read_curve(run.folder), fingerprint(options.data[run.case.problem.data])
    mine = not differences(run.folder, words_of(run, options)) and not (curve and data and curve.facts["data_fingerprint"] != data)
    return Finding(curve, mine, bool(curve and curve.facts["source_sha256"] == source), last_checkpoint(run.folder) is not None)


def fingerprint(data: str) -> str:
    """Of the data set in this folder; empty without one, which train will say."""
    try:
        return open_dataset(data).fingerprint
    except (OSError, ValueError):
        return ""


class Runner:
    """Makes runs, some side by side."""

    def __init__(self, options: Options) -> None:
        self._options, self._source = options, source_sha256(Path(apts_mpi.__file__).resolve().parent)
        self._ending, self._lock = threading.Event(), threading.Lock()
        self._processes: set[subprocess.Popen[bytes]] = set()

    def make(self, cases: Iterable[Case]) -> int:
        """Make what is missing of ``cases``; how many runs are still missing, or failed."""
        runs, say = wanted(cases, self._options), self._options.say
        missing = [run for run in runs if not self._there(run)]
        say(f"{len(runs) - len(missing)} of {len(runs)} runs are there, {len(missing)} to make")
        began, failed = time.monotonic(), 0
        with ThreadPoolExecutor(self._options.jobs) as pool:
            futures = {pool.submit(self._one, run): run for run in missing}
            try:
                for done, future in enumerate(as_completed(futures), 1):
                    told, well = future.result()
                    failed += not well
                    left = (time.monotonic() - began) / done * (len(missing) - done)
                    say(f"{done:>4}/{len(missing)}  left {left / 60:5.1f} min  {futures[future].name:<44} {told}")
            except BaseException:  # Ctrl-C and the like: the runs keep a checkpoint and leave
                self.end()
                raise
        return failed

    def show(self, cases: Iterable[Case]) -> int:
        """Say which runs there are; how many are missing."""
        runs = {run.name: self._there(run) for run in wanted(cases, self._options)}
        for name, there in runs.items():
            self._options.say(f"{'there' if there else 'missing':<8} {name}")
        return list(runs.values()).count(False)

    def end(self) -> None:
        """Begin nothing else, and ask what is under way to keep its state and leave."""
        self._ending.set()
        with self._lock:
            for process in self._processes:
                process.send_signal(signal.SIGUSR1)

    def _there(self, run: Wanted) -> bool:
        """Whether nothing is to do; says so if the run was made by another source."""
        found = look(run, self._options, self._source)
        if found.curve is None or not found.mine or not run.enough(found.curve):
            return False
        if not found.fresh:
            told = "made again" if self._options.again else "kept (--again makes it again)"
            self._options.say(f"{run.name}: made by another source, {told}")
        return found.fresh or not self._options.again

    def _one(self, run: Wanted) -> tuple[str, bool]:
        """Start the run until it has spent its budget; a line about it, and whether it went well."""
        began = time.monotonic()
        for _ in range(len(run.untils) + 1):
            if self._ending.is_set() or self._options.deadline - time.monotonic() < SHORT:
                return "not made: the time is over", False
            found = look(run, self._options, self._source)
            going = found.curve if found.curve and found.mine and found.fresh else None
            code = self._start(run, going, going is not None and found.kept)
            curve = read_curve(run.folder)
            if curve is None or curve.status == "" or code not in WELL:  # a completion may be that of the start before
                return ("stopped, to go on later" if code == LATER else f"FAILED with {code}: {self._last_words(run)}"), False
            if run.enough(curve):
                ended = f"  {curve.status}" if curve.whole else ""
                return f"{text(curve.at(len(curve.accuracy)))}  {time.monotonic() - began:6.1f} s{ended}", True
        return "not at its limits after a start for each of them", False

    def _start(self, run: Wanted, going: Curve | None, kept: bool) -> int:
        """One process, or several ranks of it, up to the next stop; the exit code."""
        words = [*words_of(run, self._options), "--run.resume", "auto" if kept else "never"]
        if not run.case.scheduled:
            words += next_limits(run, going).stops()
        left = self._options.deadline - time.monotonic()
        if left < float("inf"):
            words += ["--stop.wall_time", f"{(going.wall if going else 0.0) + left:.0f}"]
        launcher = [mpiexec(), "-n", str(self._options.ranks)] if self._options.ranks > 1 else []
        around = {name: value for name, value in os.environ.items() if not name.startswith("APTS_")} | {"OMP_NUM_THREADS": "1"}
        run.folder.parent.mkdir(parents=True, exist_ok=True)
        note(run.folder, self._options.jobs, afresh=not kept)
        with run.folder.with_suffix(".log").open("wb") as log:
            process = subprocess.Popen(
                [*launcher, sys.executable, "-m", "apts_mpi", "train", *words], stdout=log, stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL, env=around, start_new_session=True,
            )  # fmt: skip
            with self._lock:
                self._processes.add(process)
                if self._ending.is_set():
                    process.send_signal(signal.SIGUSR1)
            code = process.wait()
            with self._lock:
                self._processes.discard(process)
        return code

    @staticmethod
    def _last_words(run: Wanted) -> str:
        lines = run.folder.with_suffix(".log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else "without a word"


def next_limits(run: Wanted, going: Curve | None) -> Limits:
    """The first of a run's budgets that it has not spent."""
    return next((limits for limits in run.untils if going is None or not going.enough(limits)), run.untils[0])


def note(folder: Path, jobs: int, *, afresh: bool) -> None:
    """How many runs were made side by side, for the seconds of this one: the most of all its starts, 0 if one of them did not say."""
    path = jobs_file(folder)
    before = jobs if afresh else int(json.loads(path.read_text(encoding="utf-8"))["jobs"]) if path.exists() else 0
    path.write_text(json.dumps({"jobs": max(jobs, before) if before else 0}) + "\n", encoding="utf-8")


def text(figures: dict[str, float]) -> str:
    """A run in a few figures."""
    return (f"{figures['accuracy']:6.2f} %  {figures['iterations']:5.0f} it  {figures['passes']:7.1f} passes  "
            f"{figures['reductions']:6.0f} reductions")  # fmt: skip
