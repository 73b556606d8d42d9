"""Make the runs that are missing: each an ordinary ``train`` with a run directory, so that the same command goes on where it stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from launched import mpiexec

import apts_mpi
from apts_mpi.provenance import source_sha256
from apts_mpi.rundir import last_checkpoint
from apts_mpi.storage.shards import open_dataset
from paper import records
from paper.cases import Case
from paper.curves import Curve, jobs_file, read_curve
from paper.identity import differences, found
from paper.limits import Limits
from paper.wanted import Options, Wanted, wanted, words_of
from paper.worth import worth

WELL, LATER = (0, 3), 75  # exit codes of train: it ended, if with numbers that are none; it goes on when it is asked to
SHORT = 20.0  # seconds in which no run is worth beginning


@dataclass(frozen=True)
class Finding:
    """What is there of a run: its folder or, without one of these settings and data, its record."""

    curve: Curve | None
    mine: bool  # it has these settings and data
    fresh: bool  # it was made by this source
    kept: bool  # a checkpoint is there to go on from


def look(run: Wanted, options: Options, source: str) -> Finding:
    """Read the folder of a run; where none has ended there, its record if that goes far enough or nothing can go on."""
    words, data = words_of(run, options), fingerprint(options.data[run.case.problem.data])

    def fits(curve: Curve | None, there: Path | Mapping[str, object]) -> bool:
        return not differences(there, words) and not (curve and data and curve.facts["data_fingerprint"] != data)

    curve = read_curve(run.folder)
    mine, kept = fits(curve, run.folder), last_checkpoint(run.folder) is not None
    ended = curve is not None and mine and curve.status != ""
    record = None if ended else recorded(run, options)
    if record is not None and fits(record.curve, record.settings) and not (mine and kept and not run.enough(record.curve)):
        curve, mine, kept = record.curve, True, False
    return Finding(curve, mine, bool(curve and curve.facts["source_sha256"] == source), kept)


def recorded(run: Wanted, options: Options) -> records.Record | None:
    """The record of a run; one that cannot be read is named."""
    path = records.path_of(options.records, run.case.name, run.folder.name) if options.records else None
    try:
        return records.read_record(path) if path is not None and path.is_file() else None
    except ValueError as problem:
        options.say(f"left out: {problem}")
        return None


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
        self._others = list[str]()  # runs that another source made, not yet told

    def make(self, cases: Iterable[Case]) -> int:
        """Make what is missing of ``cases``; how many runs are still missing, or failed."""
        runs, say = wanted(cases, self._options), self._options.say
        there = [(run, self._there(run)) for run in runs]
        missing = [run for run, curve in there if curve is None]
        for run, curve in there:
            self._keep(run, curve)
        self._tell_others()
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
        runs = {run.name: self._there(run) is not None for run in wanted(cases, self._options)}
        self._tell_others()
        for name, there in runs.items():
            self._options.say(f"{'there' if there else 'missing':<8} {name}")
        return list(runs.values()).count(False)

    def end(self) -> None:
        """Begin nothing else, and ask what is under way to keep its state and leave."""
        self._ending.set()
        with self._lock:
            for process in self._processes:
                process.send_signal(signal.SIGUSR1)

    def _there(self, run: Wanted) -> Curve | None:
        """The run if nothing is to do; says so if there is a record alone that does not go far enough."""
        there = look(run, self._options, self._source)
        if there.curve is None or not there.mine:
            return None
        if not run.enough(there.curve):
            if there.curve.worth is not None:
                count = len(there.curve.accuracy)
                self._options.say(f"{run.name}: its record ends after {count} iterations, it is made again from the start to go further")
            return None
        if not there.fresh:
            self._others.append(run.name)
        return there.curve if there.fresh or not self._options.again else None

    def _tell_others(self) -> None:
        """Say which runs another source made: their settings are those that are asked for, the program was another."""
        if self._others:
            told = "made again" if self._options.again else "kept (--again makes them again)"
            more = f" and {len(self._others) - 1} more" if len(self._others) > 1 else ""
            self._options.say(f"made by another source, {told}: {self._others[0]}{more}")
        self._others = []

    def _keep(self, run: Wanted, curve: Curve | None) -> None:
        """Write the record of a run that has come to its budget and has its folder."""
        if self._options.records is None or curve is None or curve.worth is not None:
            return
        path = records.path_of(self._options.records, run.case.name, run.folder.name)
        try:
            records.keep(path, curve, found(run.folder), run.untils, lambda: worth(run.folder), self._options.again)
        except OSError as problem:
            self._options.say(f"{run.name}: no record, {problem.strerror}")

    def _one(self, run: Wanted) -> tuple[str, bool]:
        """Start the run until it has spent its budget; a line about it, and whether it went well."""
        began = time.monotonic()
        for _ in range(len(run.untils) + 1):
            if self._ending.is_set() or self._options.deadline - time.monotonic() < SHORT:
                return "not made: the time is over", False
            there = look(run, self._options, self._source)
            going = there.curve if there.curve and there.mine and there.fresh else None
            code = self._start(run, going, going is not None and there.kept)
            curve = read_curve(run.folder)
            if curve is None or curve.status == "" or code not in WELL:  # a completion may be that of the start before
                return ("stopped, to go on later" if code == LATER else f"FAILED with {code}: {self._last_words(run)}"), False
            if run.enough(curve):
                self._keep(run, curve)
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
            words += ["--stop.wall_time", f"{(going.wall if going and kept else 0.0) + left:.0f}"]
        launcher = [mpiexec(), "-n", str(self._options.ranks)] if self._options.ranks > 1 else []
        around = {name: value for name, value in os.environ.items() if not name.startswith("APTS_")} | {"OMP_NUM_THREADS": "1"}
        run.folder.parent.mkdir(parents=True, exist_ok=True)
        note(run.folder, 0 if self._options.busy else self._options.jobs, afresh=not kept)
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
    path.write_text(json.dumps({"jobs": max(jobs, before) if jobs and before else 0}) + "\n", encoding="utf-8")


def text(figures: dict[str, float]) -> str:
    """A run in a few figures."""
    return (f"{figures['accuracy']:6.2f} %  {figures['iterations']:5.0f} it  {figures['passes']:7.1f} passes  "
            f"{figures['reductions']:6.0f} reductions")  # fmt: skip
