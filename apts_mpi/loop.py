"""The outer iterations of one run: step, look, record, until something says stop."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from apts_mpi import provenance, settings, timing
from apts_mpi.assembly import ArraySource, Problem
from apts_mpi.config import Config
from apts_mpi.contracts import Communicator, Flag, Status, StepInfo, Wishes
from apts_mpi.monitor import Monitor
from apts_mpi.network import emulated
from apts_mpi.problem.scoring import score
from apts_mpi.rundir import Completion
from apts_mpi.solver.build import Stepper, outer_per_epoch
from apts_mpi.timing import Timers

if TYPE_CHECKING:
    from apts_mpi.storage.records import RunDirectory

Maker = Callable[[Config, Problem, Communicator, Timers, Wishes], Stepper]


@dataclass(frozen=True)
class Result:
    """How a run ended; the same on all ranks."""

    status: Status
    theta: Tensor  # (n,), the final parameters
    steps: list[StepInfo]  # one per outer iteration
    accuracy: float  # per cent of the test set; nan without one
    loss: float  # training loss, last known
    passes: float  # gradient evaluations, in passes over the training set
    reductions: int  # n-vector reductions
    seconds: float
    directory: str  # of the run; empty if none was written

    @property
    def exit_code(self) -> int:
        """0 finished, 3 numerical failure."""
        return 3 if self.status is Status.NONFINITE else 0


class Loop:
    """The outer iterations of one run: step, look, record, until something says stop; ``facts`` go into header and provenance."""

    def __init__(
        self, config: Config, comm: Communicator, problem: Problem, timers: Timers, threads: int, write: bool, make: Maker,
        facts: Mapping[str, str],
    ) -> None:  # fmt: skip
        self._config, self._comm, self._problem, self._timers, self._threads = config, comm, problem, timers, threads
        self._facts, self._network = facts, str(emulated(config.comm, comm.size) or "")
        self._batches = outer_per_epoch(config, problem.objective.batches)  # outer iterations in an epoch
        limits = [config.stop.epochs * self._batches, config.stop.iterations]
        self._total = min((limit for limit in limits if limit), default=0)
        self._directory = self._make_directory(threads) if write else None
        self._monitor = Monitor(config.run.monitor if comm.rank == 0 else "none", self._total, f"apts_mpi: {config.run.name}")
        self._solver = make(config, problem, comm, timers, self._wishes)
        self._sent = comm.messages, comm.bytes  # by earlier runs in this process
        self._samples = self._reductions = 0
        self._accuracy = math.nan
        self._steps: list[StepInfo] = []

    def run(self) -> Result:
        """All outer iterations; every rank calls."""
        before = sum(line.mean for line in timing.table([self._timers.row()]))
        self._timers.phase(timing.RUN)
        with self._monitor as monitor:
            monitor.start(self._header())
            monitor.say(f"set up in {before:.1f} s, first iteration under way")
            status = Status.RUNNING
            while status is Status.RUNNING:
                status = self._iterate(len(self._steps))
            return self._finish(status)

    def _iterate(self, k: int) -> Status:
        """Outer iteration k and what follows from it."""
        info = self._solver.step(k // self._batches, k % self._batches)
        self._steps.append(info)
        self._samples += info.gradient_samples
        self._reductions += info.reductions
        every = self._config.run.evaluate_iterations or self._config.run.evaluate * self._batches
        status = self._status(info)
        looked = self._problem.test is not None and (status is not Status.RUNNING or (every and (k + 1) % every == 0))
        if looked:
            self._accuracy = self._test()
            if status is Status.RUNNING and self._accuracy >= self._config.stop.target_accuracy:
                status = Status.TARGET_ACCURACY
        self._record(info, self._accuracy if looked else None)
        return status

    def _status(self, info: StepInfo) -> Status:
        """Go on or not; the same on all ranks, because it rests on sums alone."""
        stop, done = self._config.stop, info.k + 1
        if info.status is not Status.RUNNING:
            return info.status
        if known_loss(info) <= stop.target_loss:
            return Status.TARGET_LOSS
        if Flag.STOP in info.raised:
            return Status.WALL_TIME
        if stop.iterations and done >= stop.iterations:
            return Status.ITERATIONS
        return Status.EPOCHS if stop.epochs and done >= stop.epochs * self._batches else Status.RUNNING

    def _wishes(self) -> list[Flag]:
        """Rank 0's clock alone says when the time is up; the others hear it in the next message."""
        return [Flag.STOP] if self._comm.rank == 0 and self._timers.elapsed() > self._config.stop.wall_time else []

    def _test(self) -> float:
        """Accuracy on the test set in per cent; nan if the targets are no labels. Every rank calls."""
        assert self._problem.test is not None
        with self._timers(timing.TEST):
            rows = self._comm.gather(score(self._problem.flat, self._problem.loss, self._problem.test, self._problem.theta))
        return 100 * sum(row[1] for row in rows) / sum(row[2] for row in rows)

    def _record(self, info: StepInfo, accuracy: float | None) -> None:
        """Rank 0 shows and stores the iteration; nothing here is collective."""
        seconds, done = self._timers.elapsed(), info.k + 1
        extra = {
            "epoch": done / self._batches, "time": seconds, "eta": seconds / done * (self._total - done) if self._total else None,
            "passes": self._passes, "reductions_total": float(self._reductions), "accuracy": accuracy,
            "messages": float(self._traffic[0]), "bytes": float(self._traffic[1]),
        }  # fmt: skip
        with self._timers(timing.IO):
            self._monitor.step(info, extra)
            laps = self._timers.lap()  # on every rank, for the laps in records.h5
            if self._directory is not None:
                self._directory.append(info, extra, laps)

    @property
    def _traffic(self) -> tuple[int, int]:
        """Messages and payload bytes of this run, this rank."""
        return self._comm.messages - self._sent[0], self._comm.bytes - self._sent[1]

    @property
    def _passes(self) -> float:
        return self._samples / self._problem.samples

    def _finish(self, status: Status) -> Result:
        """The phase table, the run directory's last files, the result; every rank calls."""
        from apts_mpi.parallel.handshake import together

        seconds = self._timers.elapsed()
        # No success is recorded for ranks that have drifted apart.
        self._comm.agree("the final theta", sha256(self._problem.theta.cpu().numpy().tobytes()).hexdigest())
        rows = self._comm.gather(self._timers.row())
        last, theta = self._steps[-1], self._problem.theta
        path = self._comm.share(str(self._directory.path) if self._directory else "")
        result = Result(status, theta, self._steps, self._accuracy, known_loss(last), self._passes, self._reductions, seconds, path)
        laps = self._laps(rows) if path else {}
        self._problem.flat.restore(theta)  # first: a full disk must not cost the caller the module
        together(self._comm, lambda: self._store(result, rows, laps))
        shown = {
            "status": status.value, "training loss": f"{result.loss:.4g}",
            "test accuracy": "none" if math.isnan(self._accuracy) else f"{self._accuracy:.2f} %",
            "outer iterations": len(self._steps), "evaluations": f"{self._passes:.1f} passes over the training set",
            "reductions": f"{self._reductions} vectors of {theta.numel():,} numbers", "time": f"{seconds:.1f} s",
            "run": path or "not stored",
        }  # fmt: skip
        shown |= self._rates(result, rows)
        self._monitor.finish(timing.table(rows), shown)
        return result

    def _laps(self, rows: list[list[float]]) -> dict[str, NDArray[np.float32]]:
        """Seconds of each iteration and rank, by the regions that any rank entered; empty but on rank 0. Every rank calls."""
        used = [line.region for line in timing.table(rows) if line.phase == timing.RUN]
        found = {region: self._comm.collect(np.array(self._timers.laps(region))) for region in used}
        return {region: np.stack(laps, axis=1) for region, laps in found.items() if laps is not None}

    def _rates(self, result: Result, rows: list[list[float]]) -> dict[str, str]:
        """The line about flops, if they are known."""
        value_samples = sum(info.value_samples for info in self._steps)
        known = self._problem.arithmetic
        text = known.text(known.total(self._samples, value_samples), self._comm.size, result.seconds, timing.table(rows))
        return {"arithmetic": text} if text else {}

    def _store(self, result: Result, rows: list[list[float]], laps: dict[str, NDArray[np.float32]]) -> None:
        if self._directory is None:
            return
        from apts_mpi.storage.records import digest

        named = {name: value.cpu().numpy() for name, value in self._problem.flat.views(result.theta).items()}
        done = len(result.steps)
        completion = Completion(
            status=result.status.value, iterations=done, epochs=done / self._batches, n_params=result.theta.numel(),
            subdomains=self._problem.subdomains, ranks=self._comm.size, loss=result.loss, accuracy=result.accuracy, passes=result.passes,
            reductions=result.reductions, messages=self._traffic[0], bytes=self._traffic[1], seconds=result.seconds,
            theta_sha256=digest(result.theta.cpu().numpy()),
        )  # fmt: skip
        self._directory.finish(completion, named, rows, laps)

    def _header(self) -> dict[str, object]:
        problem, config = self._problem, self._config
        share = f"{problem.objective.batch_samples:,} of {problem.samples:,} samples per outer iteration"
        name = type(problem.flat.module).__name__ if isinstance(problem.data.train, ArraySource) else config.model.name
        facts: dict[str, object] = {
            "data": f"{problem.data.name}, {share}", "model": f"{name}, n = {problem.theta.numel():,}, {config.model.dtype}",
            "method": described(config),
            "subdomains": f"N = {problem.subdomains} on P = {self._comm.size} ranks",
            "device": f"{problem.theta.device}, {self._threads} thread{'s' * (self._threads > 1)} per rank",
            "run": str(self._directory.path) if self._directory else "not stored",
        }  # fmt: skip
        return {**facts, **self._facts, **({"network": self._network} if self._network else {})}

    def _make_directory(self, threads: int) -> RunDirectory | None:
        """Rank 0's run directory; every rank calls."""
        from apts_mpi.parallel.handshake import together
        from apts_mpi.storage.records import RunDirectory

        comm, config, problem = self._comm, self._config, self._problem
        hosts, devices = comm.gather_text(comm.host), comm.gather_text(str(problem.theta.device))
        facts = provenance.collect(
            config_sha256=settings.digest(config), seed=config.run.seed, data=problem.data.fingerprint, mpi_library=comm.library,
            hosts=hosts, threads=threads, devices=devices, n_params=problem.theta.numel(), subdomains=problem.subdomains,
        ) | {
            "emulated_network": self._network, "flops_per_gradient": problem.arithmetic.gradient,
            "flops_per_value": problem.arithmetic.value, "peak_flops": problem.arithmetic.peak, **self._facts,
        }  # fmt: skip

        def make() -> RunDirectory | None:
            if comm.rank != 0:
                return None
            return RunDirectory.create(config.run.dir, config.run.name, settings.to_toml(config), facts)

        return together(comm, make)


def known_loss(info: StepInfo) -> float:
    """The loss after the step, or before it where the method does not evaluate it."""
    return info.loss if math.isnan(info.loss_new) else info.loss_new


def described(config: Config) -> str:
    """The method and its main settings, for people."""
    b = config.baseline
    if config.method == "apts":
        local = f"local {config.local.solver}, {config.solver.combine} of the steps"
        return f"preset {config.preset}: {local}, global {config.global_step.solver}"
    if config.method == "trust-region":
        return f"trust-region: global {config.global_step.solver} alone"
    detail = {"sgd": f", momentum {b.momentum:g}", "local-sgd": f", momentum {b.momentum:g}, H = {b.period}"}.get(config.method, "")
    return f"{config.method}: lr {b.lr:g} {b.schedule}{detail}{', overlapped' if b.overlap else ''}"
