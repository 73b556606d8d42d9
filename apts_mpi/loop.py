"""The outer iterations of one run: step, look, record, keep, until something says stop."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from hashlib import sha256
from typing import TYPE_CHECKING

from apts_mpi import closing, drift, timing
from apts_mpi.assembly import Problem
from apts_mpi.checkpoints import Checkpoints
from apts_mpi.config import Config
from apts_mpi.contracts import Communicator, Flag, Status, StepInfo, Wishes
from apts_mpi.interrupt import Interrupt
from apts_mpi.monitor import Monitor
from apts_mpi.opening import header, meaningless, open_directory
from apts_mpi.outcome import ENDS, NOTHING_LEFT, UNWANTED, Progress, Result, known_loss
from apts_mpi.parallel import launch
from apts_mpi.problem.scoring import score
from apts_mpi.resumption import Found, facts_of, hand_over
from apts_mpi.rundir import CHECKPOINTS
from apts_mpi.solver.average import result_of
from apts_mpi.solver.build import Resumable, Stepper, outer_per_epoch
from apts_mpi.timing import Timers

if TYPE_CHECKING:
    from torch import Tensor

Maker = Callable[[Config, Problem, Communicator, Timers, Wishes], Stepper]
RECENT = 5  # iterations by which the time of the next one is foreseen
CAUTION = 1.5  # it may take so many times the longest of them


class Loop:
    """The outer iterations of one run; every rank constructs it and calls ``run``.

    ``facts`` go into header and provenance. ``found``: what to go on from. ``arithmetic`` says what the last bits depend on.
    """

    def __init__(
        self, config: Config, comm: Communicator, problem: Problem, timers: Timers, threads: int, write: bool, make: Maker,
        facts: Mapping[str, str], found: Found | None, arithmetic: str,
    ) -> None:  # fmt: skip
        self._config, self._comm, self._problem, self._timers, self._arithmetic = config, comm, problem, timers, arithmetic
        self._batches = outer_per_epoch(config, problem.objective.batches)  # outer iterations in an epoch
        limits = [config.stop.epochs * self._batches, config.stop.iterations]
        self._total = min((limit for limit in limits if limit), default=0)
        kind, title = config.run.monitor if comm.rank == 0 else "none", f"apts_mpi: {config.run.name}"
        self._monitor = Monitor(kind, self._total, title, without=meaningless(config, problem.scored))
        self._interrupt = Interrupt(launch.leave_now)
        self._progress, self._running, self._heard = Progress(), False, False
        self._solver = make(config, problem, comm, timers, self._wishes)
        if found is not None:
            self._progress = hand_over(found, comm, problem, self._solver, self._batches)
        self._since = len(self._progress.steps)
        self._notes = list(found.notes) if found else []
        status = self._status(self._progress.steps[-1]) if self._progress.steps else Status.RUNNING
        if status is Status.RUNNING and self._progress.seconds > config.stop.wall_time:
            status = Status.WALL_TIME
        self._first, self._begun = len(self._progress.steps), status  # not RUNNING: there is nothing left to do
        writes = write and not (found is not None and found.complete and status is not Status.RUNNING)
        self._directory = open_directory(config, comm, problem, threads, facts, found, self._warn) if writes else None
        place = comm.share(str(self._directory.path) if self._directory else "")
        self._place = place or (found.folder if found else "")
        folder = self._directory.path / CHECKPOINTS if self._directory else None
        self._checkpoints = Checkpoints(config.checkpoint, comm, folder, self._warn)
        self._header = header(config, problem, comm.size, threads, self._place or "not stored", facts)
        self._keeps = self._checkpoints.on and isinstance(self._solver, Resumable) and bool(place)
        if self._checkpoints.on and place and not self._keeps:
            self._notes.append(f"{type(self._solver).__name__} has no state, recall_ and restore_: no checkpoints are kept")
        self._unsaved = ""  # why the last checkpoint is not on the disk
        self._sent = comm.messages, comm.bytes  # by earlier runs in this process, and by resuming

    def run(self) -> Result:
        """All outer iterations; every rank calls."""
        before = sum(line.mean for line in timing.table([self._timers.row()]))
        self._timers.phase(timing.RUN)
        with self._monitor as monitor, self._open():
            monitor.start(self._header, averaged=result_of(self._solver) is not self._solver.theta)
            for note in filter(None, [*self._notes, self._interrupt.note if self._place else ""]):
                monitor.note(note)
            status = self._begun
            nth = f"iteration {self._first + 1}" if self._first else "first iteration"
            monitor.say(f"set up in {before:.1f} s, {nth} under way" if status is Status.RUNNING else NOTHING_LEFT)
            self._checkpoints.begin(self._first)
            self._running = True
            while status is Status.RUNNING:
                status = self._iterate(len(self._progress.steps))
            return self._finish(status)

    @contextlib.contextmanager
    def _open(self) -> Iterator[None]:
        """Signals mean a stop with a checkpoint while the run goes on; however it ends, nothing is left half written or locked."""
        with contextlib.ExitStack() as stack:
            if self._directory is not None:
                stack.callback(self._directory.close)
            stack.callback(self._checkpoints.finish)
            if self._place:  # elsewhere nothing can be kept, and signals mean what they meant before
                stack.enter_context(self._interrupt)
            yield

    def _iterate(self, k: int) -> Status:
        """Outer iteration k and what follows from it."""
        info = self._solver.step(k // self._batches, k % self._batches)
        self._progress.add(info)
        status = self._status(info)
        if self._verify(k + 1, Flag.SAVE in info.raised or status is not Status.RUNNING) and info.status is not Status.RUNNING:
            info = self._progress.steps[-1] = replace(info, status=Status.RUNNING)  # found with a wrong theta on some rank: no end
            status = self._status(info)
        every = self._config.run.evaluate_iterations or self._config.run.evaluate * self._batches
        ended = status not in (Status.RUNNING, Status.INTERRUPTED)
        looked = self._problem.test is not None and (ended or (every and (k + 1) % every == 0))
        if looked:
            self._test(status)
            if not ended and self._progress.accuracy >= self._config.stop.target_accuracy:
                status = Status.TARGET_ACCURACY
                self._verify(k + 1, True)
        self._record(info, self._progress.accuracy if looked else None)
        due = Flag.SAVE in info.raised or status is not Status.RUNNING
        if due and self._keeps and status is not Status.NONFINITE:
            self._save(wait=status is not Status.RUNNING)
        return status

    def _status(self, info: StepInfo) -> Status:
        """Go on or not; the same on all ranks, because it rests on sums alone."""
        stop, done = self._config.stop, info.k + 1
        if info.status is not Status.RUNNING:
            return info.status
        if known_loss(info) <= stop.target_loss:
            return Status.TARGET_LOSS
        if self._progress.accuracy >= stop.target_accuracy:
            return Status.TARGET_ACCURACY
        if Flag.STOP in info.raised:
            return Status.WALL_TIME
        if stop.iterations and done >= stop.iterations:
            return Status.ITERATIONS
        if stop.epochs and done >= stop.epochs * self._batches:
            return Status.EPOCHS
        spent, reductions = self._progress.samples / self._problem.samples, self._progress.reductions
        if 0 < stop.passes <= spent + 1e-9 or 0 < stop.reductions <= reductions:
            return Status.SPENT
        return Status.INTERRUPTED if Flag.INTERRUPT in info.raised else Status.RUNNING

    def _wishes(self) -> list[Flag]:
        """What this rank wants all to hear: rank 0's clocks alone say that time is up or a checkpoint due; signals come to any."""
        if not self._running:  # what a method evaluates while it is set up
            return []
        flags, needed = [], 0.0
        if self._comm.rank == 0:
            if self._elapsed > self._config.stop.wall_time:
                flags.append(Flag.STOP)
            if self._keeps and self._checkpoints.due(len(self._progress.steps) + 1):
                flags.append(Flag.SAVE)
            needed = self._foreseen()
        if self._place and self._interrupt.wanted(needed):
            flags.append(Flag.INTERRUPT)
            self._acknowledge()
        return flags

    def _acknowledge(self) -> None:
        """Rank 0 says once that it has heard; the others' reasons are told at the end."""
        if not self._heard:
            self._heard = True
            self._warn(f"{self._interrupt.reason}: all ranks stop after this iteration; a second Ctrl-C ends them at once")

    def _foreseen(self) -> float:
        """Seconds that the next iteration and a checkpoint after it may take."""
        return CAUTION * max(self._timers.recent(RECENT), default=0.0) + self._checkpoints.seconds

    @property
    def _elapsed(self) -> float:
        """Seconds of the run phase, those of earlier starts too."""
        return self._progress.seconds + self._timers.elapsed()

    def _result(self, status: Status) -> Tensor:
        """The parameters that are shown: theta where the method has come to its end there, else the mean if there is one."""
        return self._problem.theta if status in ENDS else result_of(self._solver)

    def _test(self, status: Status) -> None:
        """Note loss and accuracy on the test set; every rank calls."""
        assert self._problem.test is not None
        with self._timers(timing.TEST):
            rows = self._comm.gather(score(self._problem.flat, self._problem.loss, self._problem.test, self._result(status)))
        self._progress.tested(rows)

    def _verify(self, done: int, saving: bool) -> bool:
        """Compare theta over the ranks when it is time, and before it is kept; whether ranks differed and were mended. Every rank calls."""
        every = self._config.safety.verify
        if self._comm.size == 1 or not every or not (saving or done % every == 0):
            return False
        with self._timers(timing.IO):
            told = drift.check(self._comm, self._solver, self._config.safety.on_difference == "heal", done)
        if told:
            self._warn(told)
        return bool(told)

    def _record(self, info: StepInfo, accuracy: float | None) -> None:
        """Rank 0 shows and stores the iteration; nothing here is collective."""
        done, now = info.k + 1, self._counted()
        pace = self._timers.elapsed() / (done - self._first)
        extra = {
            "epoch": done / self._batches, "time": now.seconds, "eta": pace * (self._total - done) if self._total else None,
            "passes": now.samples / self._problem.samples, "reductions_total": float(now.reductions), "accuracy": accuracy,
            "messages": float(now.messages), "bytes": float(now.bytes),
        }  # fmt: skip
        with self._timers(timing.IO):
            self._monitor.step(info, extra)
            laps = self._timers.lap()  # on every rank, for the laps in records.h5
            if self._directory is not None:
                self._directory.append(info, extra, laps)

    def _counted(self) -> Progress:
        """How far the run has come, over all its starts."""
        messages, nbytes = self._comm.messages - self._sent[0], self._comm.bytes - self._sent[1]
        known = self._progress
        return replace(known, messages=known.messages + messages, bytes=known.bytes + nbytes, seconds=self._elapsed)

    def _save(self, wait: bool) -> None:
        """Keep the run as it is now; with ``wait``, until it is on the disk. Every rank calls."""
        with self._timers(timing.IO):
            facts = facts_of(self._config, self._problem, self._counted(), self._arithmetic)
            records = self._directory.text_later() if self._directory else bytes
            assert isinstance(self._solver, Resumable)
            self._unsaved = self._checkpoints.save(facts, self._problem.theta, self._solver.state(), records, wait)

    def _finish(self, status: Status) -> Result:
        """The phase table, the run directory's last files, the result; every rank calls."""
        self._checkpoints.finish()  # before the folder is given back
        now, theta, comm = self._counted(), self._result(status), self._comm
        # No success is recorded for ranks that have drifted apart.
        comm.agree("the final theta", sha256(theta.cpu().numpy().tobytes()).hexdigest())
        rows = comm.gather(self._timers.row())
        passes, loss = now.samples / self._problem.samples, known_loss(now.steps[-1])
        if theta is not self._solver.theta and status is not Status.INTERRUPTED:  # the records' losses are those of the iterates
            loss = closing.loss_at(self._problem, comm, theta, len(now.steps) - 1, self._config)
        why = self._unsaved if self._keeps else UNWANTED if status is Status.INTERRUPTED else ""
        result = Result(status, theta, now.steps, now.accuracy, loss, passes, now.reductions, now.seconds, self._place, why, now.test_loss)
        self._problem.flat.restore(theta)  # first: a full disk must not cost the caller the module
        closing.store(self._directory, comm, self._problem, self._timers, rows, result, now, self._batches, self._warn)
        facts = closing.shown(result, self._problem, comm, rows, self._since, self._checkpoints.told(), theta is not self._solver.theta)
        if status is Status.INTERRUPTED:
            facts |= closing.interrupted(result, comm.gather_text(self._interrupt.reason), self._problem.data.in_memory)
            self._interrupt.leaving = True
        self._monitor.finish(timing.table(rows), facts)
        return result

    def _warn(self, text: str) -> None:
        self._monitor.note(text)
