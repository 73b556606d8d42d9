"""Look for a learning rate: a list of them, several seeds each, the best by the mean; and what the search cost.

A run per rate and seed, one after the other in the same processes. A run that is there already, with the same settings,
is not made again, so a search that was cut short goes on where it stopped.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean, pstdev

from apts_mpi import settings
from apts_mpi.baseline import ALL_REDUCE
from apts_mpi.config import Config
from apts_mpi.contracts import Communicator, Status
from apts_mpi.regular import with_sum
from apts_mpi.rundir import CONFIG, Completion, finished, last_checkpoint, read_run

TUNE = "tune.json"
TUNED = (*ALL_REDUCE, "local-sgd")
Say = Callable[[str], None]


@dataclass(frozen=True)
class Trial:
    """One run of the search."""

    lr: float
    seed: int
    run: str  # directory within the search's
    status: str
    accuracy: float  # test set, per cent, at the end; nan without labels
    loss: float  # training loss, last known
    passes: float  # gradient evaluations in passes over the training set
    reductions: int
    bytes: int  # payload of a rank
    seconds: float

    @property
    def diverged(self) -> bool:
        return self.status == Status.NONFINITE.value or not math.isfinite(self.loss)


@dataclass(frozen=True)
class Rate:
    """All seeds of one learning rate; nan in place of means that runs without an end have spoiled."""

    lr: float
    accuracy: float  # mean
    accuracy_spread: float  # standard deviation over the seeds
    loss: float  # mean
    diverged: int  # runs
    target_passes: float = math.nan  # mean gradient evaluations to stop.target_accuracy, in passes; nan if a run did not reach it


def check(config: Config) -> None:
    """Raise ValueError if the method has no learning rate."""
    if config.method not in TUNED:
        raise ValueError(f"tune looks for a learning rate; method must be one of {', '.join(TUNED)}, got {config.method}")


def folder_of(config: Config) -> Path:
    """``run.dir``, or one named after the settings, so that the same command finds its runs again."""
    return Path(config.run.dir) if config.run.dir else Path("runs") / f"tune-{config.method}-{settings.digest(config)[:12]}"


def plan(config: Config, rates: Sequence[float], seeds: Sequence[int]) -> list[Config]:
    """The runs of the search in their order: all rates with the first seed, then with the next."""
    folder = folder_of(config)
    return [
        replace(
            config, baseline=replace(config.baseline, lr=lr),
            run=replace(config.run, seed=seed, dir=str(folder / f"lr-{lr!r}-seed-{seed}"), monitor="none"),
        )
        for seed in seeds for lr in rates
    ]  # fmt: skip


def tune(config: Config, rates: Sequence[float], seeds: Sequence[int], by: str, comm: Communicator, say: Say) -> int:
    """Make the runs that are missing, show the table, write tune.json; every rank calls. 3 if every rate diverged.

    75 if a signal stopped a run, which the same command goes on with.

    ``by``: accuracy (highest mean), loss (lowest) or target (fewest gradient evaluations to stop.target_accuracy).
    ``say`` prints a line; only rank 0's is called.
    """
    from apts_mpi.parallel.handshake import together
    from apts_mpi.train import run_training

    def at_root(look: Callable[[], int]) -> int:
        """What rank 0 finds, on all ranks; its errors are errors of all."""
        return int(comm.share(str(together(comm, lambda: int(look()) if comm.rank == 0 else 0))))

    def add(run: Config) -> int:
        trials.append(trial(run))
        say(f"{len(trials)}/{len(runs)}  {line(trials[-1])}")
        return len(trials)

    comm.agree("learning rates and seeds", f"{rates} {seeds} {by}")
    trials: list[Trial] = []
    runs = plan(config, rates, seeds)
    for run in runs:
        if not at_root(partial(finished, Path(run.run.dir), settings.to_toml(run))):
            begun = at_root(partial(_begun, run))
            result = run_training(replace(run, run=replace(run.run, resume="auto" if begun else "never")), comm)
            if result.status is Status.INTERRUPTED:
                if comm.rank == 0:
                    kept = f"not saved: {result.unsaved}" if result.unsaved else "saved"
                    say(f"stopped on request in {run.run.dir} after iteration {len(result.steps)}, {kept}; the same command goes on")
                return result.exit_code
        at_root(partial(add, run))
    return at_root(lambda: conclude(config, trials, rates, by, say))


def _begun(run: Config) -> bool:
    """Whether exactly this run was cut off after a checkpoint."""
    folder = Path(run.run.dir)
    same = (folder / CONFIG).is_file() and (folder / CONFIG).read_text(encoding="utf-8", errors="replace") == settings.to_toml(run)
    return same and last_checkpoint(folder) is not None


def trial(config: Config) -> Trial:
    """The figures of a finished run."""
    done = read_run(config.run.dir).completion
    assert isinstance(done, Completion)
    return Trial(
        config.baseline.lr, config.run.seed, Path(config.run.dir).name, done.status, done.accuracy, done.loss, done.passes,
        done.reductions, done.bytes, done.seconds,
    )  # fmt: skip


def summary(trials: Sequence[Trial], rates: Sequence[float]) -> list[Rate]:
    """Mean and spread over the seeds of every rate, in the order of ``rates``."""
    found = []
    for lr in rates:
        runs = [each for each in trials if each.lr == lr]
        accuracies, diverged = [each.accuracy for each in runs], sum(each.diverged for each in runs)
        known = all(math.isfinite(value) for value in accuracies)
        loss = math.nan if diverged else fmean(each.loss for each in runs)
        reached = all(each.status == Status.TARGET_ACCURACY.value for each in runs)
        passes = fmean(each.passes for each in runs) if reached else math.nan
        found.append(Rate(lr, fmean(accuracies) if known else math.nan, pstdev(accuracies) if known else math.nan, loss, diverged, passes))
    return found


def best_of(found: Sequence[Rate], by: str) -> Rate | None:
    """The best rate of which no run diverged; by loss where there is no accuracy or it is the same. None if all diverged.

    By target: the best of those that reached it in every run; None if there is none.
    """
    good = [rate for rate in found if not rate.diverged]
    if by == "target":
        return min((rate for rate in good if math.isfinite(rate.target_passes)), key=lambda rate: rate.target_passes, default=None)
    if by == "accuracy" and all(math.isfinite(rate.accuracy) for rate in good):
        return max(good, key=lambda rate: (rate.accuracy, -rate.loss), default=None)
    return min(good, key=lambda rate: rate.loss, default=None)


def conclude(config: Config, trials: Sequence[Trial], rates: Sequence[float], by: str, say: Say) -> int:
    """Show and store what was found; 3 if every rate diverged."""
    from apts_mpi.storage.plain import write_atomic

    found = summary(trials, rates)
    best = best_of(found, by)
    cost = {name: sum(getattr(each, name) for each in trials) for name in ("passes", "reductions", "bytes", "seconds")}
    for text in table(found, best):
        say(text)
    say(
        f"cost of the search: {len(trials)} runs, {cost['passes']:.1f} passes of gradient evaluations, "
        f"{cost['reductions']} vector reductions, {cost['seconds']:.1f} s"
    )
    report: dict[str, object] = {
        "method": config.method, "by": by, "best_lr": best.lr if best else None, "cost": cost,
        "rates": [plain(asdict(rate)) for rate in found],
        "runs": [plain(asdict(each)) for each in trials], "config": settings.values(config),
    }  # fmt: skip
    folder = folder_of(config)
    write_atomic(folder / TUNE, (json.dumps(with_sum(plain(report)), indent=2, allow_nan=False) + "\n").encode())
    none = "no learning rate reached stop.target_accuracy" if by == "target" else "every learning rate diverged"
    say(f"best learning rate: {best.lr:g}  ({folder / TUNE})" if best else f"{none}  ({folder / TUNE})")
    if best and len(rates) > 1 and best.lr in (min(rates), max(rates)):
        say(f"it is the {'smallest' if best.lr == min(rates) else 'largest'} that was tried: a better one may lie beyond")
    return 0 if best else 3


def plain(values: dict[str, object]) -> dict[str, object]:
    """What JSON can say: null for numbers that are not finite."""
    return {
        name: plain(value) if isinstance(value, dict) else None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    }


def line(each: Trial) -> str:
    """A run in a line."""
    accuracy = "" if math.isnan(each.accuracy) else f"  test {each.accuracy:6.2f} %"
    cost = f"{each.passes:6.1f} passes  {each.seconds:7.1f} s"
    return f"lr {each.lr:<8g} seed {each.seed:<5d} loss {each.loss:10.4g}{accuracy}  {cost}  {each.status}"


def table(found: Sequence[Rate], best: Rate | None) -> list[str]:
    """All rates, the best one marked."""
    lines = [f"{'lr':>10} {'loss':>10} {'test%':>8} {'spread':>7} {'diverged':>8} {'to target':>9}"]
    for rate in found:
        accuracy = f"{rate.accuracy:>8.2f} {rate.accuracy_spread:>7.2f}"
        cells = f"{rate.lr:>10g} {rate.loss:>10.4g} {accuracy} {rate.diverged:>8d} {rate.target_passes:>9.2f}"
        lines.append(cells.replace("nan", "  -") + ("  best" if rate is best else ""))
    return lines
