"""The runs that are asked for: each once, with all its budgets, and how it shall be made."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from paper.cases import Case
from paper.curves import Curve, folder_of, seeds_of
from paper.limits import Limits

Say = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """How runs are made."""

    runs: Path
    data: dict[str, str]  # folders of the data sets by Problem.data
    seeds: int = 3
    ranks: int = 2
    jobs: int = 1
    busy: bool = False  # the machine has other work beside: nobody knows how much
    again: bool = False  # make runs of another source again
    more: tuple[str, ...] = ()  # options of train for every run
    deadline: float = float("inf")  # of time.monotonic()
    say: Say = field(default=print, repr=False)
    records: Path | None = None  # where they are read and written; None: nowhere


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
