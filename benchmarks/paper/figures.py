"""The runs of the paper's figures 1 and 2, and the pictures of them."""

from __future__ import annotations

from pathlib import Path

from apts_mpi.study.style import COLOURS
from paper import drawing, rates
from paper.cases import ORDERS, PROBLEMS, Case, Problem, adam, ours, paper
from paper.drawing import BLACK, Line, Style
from paper.limits import Limits
from paper.published import Series, read_published
from paper.rates import Search
from paper.store import Store

FIGURES = {"figure1": ("mnist-10k-sigmoid", "mnist-full-sigmoid"), "figure2": ("cifar10-10k", "cifar10-full")}
SUBDOMAINS = (2, 4, 6)
COMBINE = ("sum", "mean")
# Epochs of each run in the search for Adam's rate; by problem.
SEARCH = {"mnist-10k-sigmoid": 30, "mnist-full-sigmoid": 40, "cifar10-10k": 40, "cifar10-full": 40}
BY_SUBDOMAINS = dict(zip(SUBDOMAINS, (Style(COLOURS[0]), Style(COLOURS[1]), Style(COLOURS[2])), strict=True))
BY_METHOD = {("o1", "sum"): Style(COLOURS[1]), ("o2", "sum"): Style(COLOURS[2]), ("o1", "mean"): Style(COLOURS[1], (0, (4, 2))),
             ("o2", "mean"): Style(COLOURS[2], (0, (4, 2)))}  # fmt: skip
MINE, TUNED = Style(COLOURS[0], width=2.0), Style(BLACK, width=1.2)
ADAM = 4  # times the epochs of the others: its epoch is one gradient evaluation


def search(problem: str) -> Search:
    """Adam's rates with the problem's batch, the first seed alone."""
    batch = 10000 if "10k" in problem else 0
    return Search(lambda rate: adam(problem, batch, rate, Limits(epochs=SEARCH[problem]), seeds=1))


def ours_and_papers(figure: str, epochs: int) -> list[Case]:
    """All runs that need no search, those with a few subdomains first."""
    until, found = Limits(epochs=epochs), list[Case]()
    for problem in FIGURES[figure]:
        for N in SUBDOMAINS:
            found += [ours(problem, N, until), *(paper(problem, N, order, combine, until) for combine in COMBINE for order in ORDERS)]
    return found


def searches(figure: str) -> list[Case]:
    """The runs of Adam's searches."""
    return [case for problem in FIGURES[figure] for case in search(problem).cases]


def best_adam(problem: str, epochs: int, store: Store) -> Case | None:
    """Adam with the best rate by its accuracy at the end, as the paper chose it; None before the search."""
    found = rates.best(search(problem), store, "accuracy")
    batch = 10000 if "10k" in problem else 0
    return adam(problem, batch, found.rate, Limits(epochs=ADAM * epochs)) if found else None


def finals(figure: str, epochs: int, store: Store) -> list[Case]:
    """Adam with the best rates, all seeds."""
    return [case for problem in FIGURES[figure] if (case := best_adam(problem, epochs, store)) is not None]


def draw(figure: str, epochs: int, store: Store, published: Path, folder: Path) -> list[Path]:
    """The pictures of a figure; those without any run are left out."""
    paths, theirs = [], read_published(published)
    for problem in map(PROBLEMS.__getitem__, FIGURES[figure]):
        best = best_adam(problem.name, epochs, store)
        beside = [Line.of(_adam(problem.name, store), TUNED, best, store)] if best else []
        held = folder / f"{figure}-{problem.name}-sum.png"  # without the published curves it stays as it is
        paths += [held] if held.is_file() and not published.is_file() else []
        for combine in COMBINE if published.is_file() else COMBINE[1:]:
            by_order = {order: [Line.of(f"N = {N}", BY_SUBDOMAINS[N], paper(problem.name, N, order, combine, Limits(epochs=epochs)), store)
                                for N in SUBDOMAINS] + beside for order in ORDERS}  # fmt: skip
            if any(line.curves for lines in by_order.values() for line in lines[: len(SUBDOMAINS)]):
                known = _published(problem, theirs) if combine == "sum" else {}
                paths.append(drawing.overlay(problem, combine, by_order, known, epochs, folder / f"{figure}-{problem.name}-{combine}"))
        known_rows = {N: methods(problem, N, epochs, store) for N in SUBDOMAINS}
        rows = {N: [*lines, *beside] for N, lines in known_rows.items() if any(line.curves for line in lines[1:])}
        if rows:
            for what in ("accuracy", "loss"):
                paths.append(drawing.work(problem, rows, what, epochs, folder / f"{figure}-{problem.name}-{what}"))
    return paths


def methods(problem: Problem, N: int, epochs: int, store: Store) -> list[Line]:
    """Ours and the four forms of Algorithm 1 with N subdomains."""
    until = Limits(epochs=epochs)
    lines = [Line.of("ours", MINE, ours(problem.name, N, until), store)]
    for combine in COMBINE:
        for order, words in (("o1", "first order"), ("o2", "L-SR1")):
            case = paper(problem.name, N, order, combine, until)
            lines.append(Line.of(f"Algorithm 1, {words}, {combine}", BY_METHOD[order, combine], case, store))
    return lines


def _adam(problem: str, store: Store) -> str:
    """Adam's name in the legend, which says so if the search is not complete."""
    found = rates.best(search(problem), store, "accuracy")
    return "Adam, tuned" if found is None or found.runs == len(rates.RATES) else f"Adam, {found.runs} of {len(rates.RATES)} rates tried"


def _published(problem: Problem, theirs: dict[str, Series]) -> dict[str, dict[str, Series]]:
    """By order: the published curves by the labels of ours."""
    stem, _, alone = problem.published.partition(":")
    found: dict[str, dict[str, Series]] = {}
    for order in ORDERS:
        names = {f"N = {N}": f"{stem}_{N}_{order}" for N in SUBDOMAINS} | {"Adam": alone}
        found[order] = {label: theirs[name] for label, name in names.items() if name in theirs}
    return found
