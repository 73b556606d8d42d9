"""The experiments by name: which runs each needs, one stage after the other, and what is made of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from paper import bars, beyond, figures, targets, tuning, variants
from paper.cases import PROBLEMS, Case
from paper.report import Context
from paper.runner import Runner

DATA = tuple(dict.fromkeys(problem.data for problem in PROBLEMS.values()))
Stage = Callable[[Context], Sequence[Case]]


def _figure(name: str) -> tuple[Stage, ...]:
    return (
        lambda known: [*figures.ours_and_papers(name, known.epochs), *figures.searches(name)],
        lambda known: figures.finals(name, known.epochs, known.store),
    )


STAGES: dict[str, tuple[Stage, ...]] = {
    "bars": (lambda known: bars.cases(),),
    "presets": (lambda known: bars.cases(bars.PRESETS),),
    "tuning": (lambda known: tuning.cases(),),
    "adam": (
        *2 * (lambda known: targets.searches(known.store),),  # those of the last iterate, then of the mean
        *3 * (lambda known: targets.finals(known.store),),  # a rate may miss with another seed
    ),
    "ablation": (lambda known: variants.cases(variants.ABLATION, variants.PLACES),),
    "second-order": (lambda known: variants.cases(variants.ORDERS, variants.EVALUATIONS),),
    "beyond": (lambda known: beyond.searches(), lambda known: beyond.finals(known.store)),
    "figure1": _figure("figure1"),
    "figure2": _figure("figure2"),
}
NAMES = tuple(STAGES)


def chosen(cases: Sequence[Case], words: Sequence[str]) -> list[Case]:
    """The cases whose name has one of the words; all if there are none."""
    return [case for case in cases if not words or any(word in case.name for word in words)]


def make(names: Sequence[str], runner: Runner, known: Context, words: Sequence[str], dry: bool) -> int:
    """Make what is missing of the experiments; how many runs failed. What a later stage runs may depend on the runs of an earlier one."""
    failed, tried = 0, set[Case]()
    for name in names:
        for stage in STAGES[name]:
            known.store.forget()
            cases = [case for case in dict.fromkeys(chosen(stage(known), words)) if case not in tried]
            tried.update(cases)
            failed += runner.show(cases) if dry else runner.make(cases)
    known.store.forget()
    return failed
