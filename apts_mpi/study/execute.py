"""Make the runs of a study that are missing, one after the other, each in processes of its own.

Before each run the machine's copy bandwidth is measured; the run waits a little for a machine that is busy with something else.
What is known of an attempt stands beside the run's folder, so a study can be cut short at any time and taken up again.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import numpy as np

from apts_mpi.study.attempt import AGAIN, CUT, LATE, NUMERICAL, TAKEN, Attempt, held, write_attempt
from apts_mpi.study.definition import Study, StudyError
from apts_mpi.study.plan import Run
from apts_mpi.train_settings import typed_code

WANDER = 0.15  # of the copy bandwidth; beyond it the machine is busy with something else
PATIENCE = 20.0  # s to wait for it
COPIED = 2**26  # bytes
Say = Callable[[str], None]


def copy_bandwidth() -> float:
    """Bytes per second that one core reads and writes in copying 64 MB; the best of five."""
    source, best = np.ones(COPIED // 8), 0.0
    target = np.empty_like(source)
    for _ in range(5):
        start = time.perf_counter()
        np.copyto(target, source)
        best = max(best, 2 * COPIED / (time.perf_counter() - start))
    return best


def cores() -> int:  # that this process may use
    return len(os.sched_getaffinity(0))


def crowded(study: Study, ranks: int) -> bool:
    """Whether a node has more threads of ranks than this machine has cores."""
    per_node = min(ranks, study.ranks_per_node or ranks)
    return per_node * study.threads > cores()


def check_cores(study: Study, runs: Sequence[Run]) -> None:
    """StudyError if runs would share cores and the study does not say that this is meant."""
    worst = [run.ranks for run in runs if crowded(study, run.ranks)]
    if worst and not study.oversubscribe:
        raise StudyError(
            f"{study.path}: {max(worst)} ranks of {study.threads} threads are more than the {cores()} cores here: their times would say "
            "nothing. Take them out of ranks, or set oversubscribe = true to have them marked"
        )


def start_words(run_ranks: int, nodes: int, launcher: str, environ: Mapping[str, str] = os.environ) -> list[str]:
    """What stands before python: ``launcher`` if given, srun inside a Slurm job, else mpiexec beside this python."""
    if launcher or "SLURM_JOB_ID" in environ:
        words = shlex.split(launcher) or ["srun", "--kill-on-bad-exit=1"]
        return [*words, "-n", str(run_ranks), "-N", str(nodes)]
    beside = Path(sys.executable).parent / "mpiexec"
    found = str(beside) if beside.exists() else shutil.which("mpiexec")
    if not found:
        raise StudyError("there is no mpiexec beside this python nor on PATH; pip install 'apts_mpi[mpich]' brings one")
    return [found, "-n", str(run_ranks)]


def environment(study: Study, ranks: int) -> dict[str, str]:
    """Of the processes: threads, and no setting of train from outside; waiting must not take a core where ranks share one."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("APTS_")}
    kept["OMP_NUM_THREADS"] = str(study.threads)
    if crowded(study, ranks):
        kept |= {"MPIR_CVAR_ENABLE_HEAVY_YIELD": "1", "OMPI_MCA_mpi_yield_when_idle": "1"}
        kept["PRTE_MCA_rmaps_default_mapping_policy"] = ":oversubscribe"
    return kept


class Executor:
    """Runs commands of a study and keeps their output."""

    def __init__(self, study: Study, launcher: str, say: Say) -> None:
        self.study, self.launcher, self._say = study, launcher, say
        self._rates = [copy_bandwidth()]  # of this machine so far
        self.ending = False  # the job ends soon: no further run is begun
        self._process: subprocess.Popen[bytes] | None = None
        self._warning = signal.SIGUSR1  # that it hears

    def make(self, runs: Sequence[Run]) -> list[Run]:
        """Make those that are not on disk; returns those that failed, or were not begun because the job ends."""
        missing, failed = [run for run in runs if not run.done], list[Run]()
        self._say(f"{len(runs) - len(missing)} of {len(runs)} runs are there, {len(missing)} to make")
        began = time.monotonic()
        for index, run in enumerate(missing):
            if self.ending:
                return failed + missing[index:]
            outcome = self._one(run)
            self.ending = self.ending or outcome.code == AGAIN
            if not run.done:
                failed.append(run)
            left = (time.monotonic() - began) / (index + 1) * (len(missing) - index - 1)
            self._say(f"{index + 1:>4}/{len(missing)}  eta {duration(left):>6}  {outcome_line(run, outcome)}")
        return failed

    def warn(self) -> None:
        """The job ends soon: tell what is under way, and begin nothing else. Safe in a signal's handler."""
        self.ending = True
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(self._warning)

    def _one(self, run: Run) -> Attempt:
        run.folder.parent.mkdir(parents=True, exist_ok=True)
        with held(run, self._say) as other:
            return Attempt(run.id, TAKEN, 0.0, 0.0, False, platform.node(), "", other) if other else self._make(run)

    def _make(self, run: Run) -> Attempt:
        config = run.folder.with_name(run.id + ".toml")
        config.write_text(run.toml, encoding="utf-8")
        words = [*self._program(run), str(config), *typed_code(run.config)]
        command = [*start_words(run.ranks, run.nodes, self.launcher), sys.executable, *words]
        rate, began = self.settled(), datetime.now(UTC).isoformat(timespec="seconds")
        crowd = crowded(self.study, run.ranks)
        attempt = Attempt(run.id, CUT, 0.0, rate, crowd, platform.node(), began, shlex.join(command))
        write_attempt(run, attempt)
        code, seconds = self.run(command, run.ranks, run.folder.with_name(run.id + ".log"))
        if code and self.ending and not run.done:  # ranks that were still loading die of the signal, with another code
            code = AGAIN
        attempt = replace(attempt, code=code, seconds=seconds)
        write_attempt(run, attempt)
        return attempt

    def _program(self, run: Run) -> list[str]:
        if not run.method.program:
            return ["-m", "apts_mpi", "train"]
        return [str((self.study.path.parent / run.method.program).resolve())]

    def settled(self) -> float:
        """The copy bandwidth, after a short wait if something else is at work."""
        began = time.monotonic()
        while (rate := copy_bandwidth()) < (1 - WANDER) * median(self._rates) and time.monotonic() - began < PATIENCE and not self.ending:
            time.sleep(1.0)
        self._rates.append(rate)
        return rate

    def run(self, command: Sequence[str], ranks: int, log: Path, warning: signal.Signals = signal.SIGUSR1) -> tuple[int, float]:
        """The exit code (-1: out of time) and the wall time; output goes to ``log``. Whatever ends this call ends the command.

        ``warning`` is what the launcher gets when the job ends soon: both mpiexec and srun hand SIGUSR1 on, and SIGTERM ends all.
        """
        began = time.monotonic()
        if self.ending:
            return AGAIN, 0.0
        with log.open("wb") as out:
            process = subprocess.Popen(
                command, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
                env=environment(self.study, ranks),
            )  # fmt: skip
            self._warning, self._process = warning, process
            if self.ending:  # said between the question above and now
                self.warn()
            try:
                code = process.wait(timeout=self.study.time_limit)
            except subprocess.TimeoutExpired:
                code = LATE
            finally:
                if process.poll() is None:
                    _end(process)
        return code, time.monotonic() - began


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the launcher and what it started: they are a session of their own."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(timeout=5)
            return
        except subprocess.TimeoutExpired:
            continue
        except ProcessLookupError:
            process.wait(timeout=5)
            return


def last_words(run: Run) -> str:
    """The last line of a run's output."""
    try:
        lines = run.folder.with_name(run.id + ".log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        return ""
    return lines[-1][:200] if lines else ""


def outcome_line(run: Run, outcome: Attempt) -> str:
    """A run in a line."""
    name = f"{run.method.name}{' on ' + run.network.name if run.network.name else ''}"
    size = f"{'+'.join(run.scalings):<11} P={run.ranks:<4d} N={run.subdomains:<4d}"
    head = f"{name:<22} {size} seed {run.seed} rep {run.repetition}  {outcome.seconds:6.1f} s"
    if run.done:
        return head + ("  diverged" if outcome.code == NUMERICAL else "")
    if outcome.code == TAKEN:
        return f"{head}  {outcome.command}"
    if outcome.code == AGAIN:
        return f"{head}  {_stopped(run, outcome)}"
    why = "took too long" if outcome.code == LATE else f"exit code {outcome.code}"
    return f"{head}  FAILED, {why}: {last_words(run) or 'no output'}\n      all of it: {run.folder.with_name(run.id + '.log')}"


def _stopped(run: Run, outcome: Attempt) -> str:
    """How far a run came that was told to end; a log may be that of an earlier try."""
    if not outcome.seconds:
        return "not begun"
    words = last_words(run)
    return f"stopped before its end: {words}" if words else "stopped before its end"


def duration(seconds: float) -> str:
    """For people: 45 s, 12 min, 3.4 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
