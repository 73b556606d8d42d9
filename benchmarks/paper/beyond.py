"""Beyond the paper: a residual network, a character transformer, and problems with a known answer, with the same constants for all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from paper.cases import PROBLEMS, Case, preset
from paper.curves import Curve, Store, folder_of
from paper.limits import Limits
from paper.table import Row, Table, mean, spread
from paper.worth import worth

SUBDOMAINS = 2
PRESETS = ("default", "sweep")
RULE = (
    "Every method has the same number of gradient evaluations, in passes over the training set, fixed before the runs. Adam, and SGD with "
    "momentum 0.9, in small minibatches with a cosine schedule down to zero; their learning rate is the best of a small grid by the figure "
    "that is shown (accuracy, or error of u), found with one seed. Accuracy at the last outer iteration within the budget; test loss and "
    "error of u with the parameters at the end, an outer iteration later at most. Mean [least, largest] of the seeds. Tuning: gradient "
    "evaluations of all runs of the search."
)


@dataclass(frozen=True)
class Place:
    """A problem, its budget, and what the methods with a learning rate try."""

    problem: str
    passes: int
    batch: int  # of Adam and SGD
    steps: int  # of them in an epoch
    rates: dict[str, tuple[float, ...]]
    presets: tuple[str, ...] = PRESETS

    @property
    def known(self) -> bool:
        """Whether it has an answer, so that an error is shown and not an accuracy."""
        return PROBLEMS[self.problem].data in ("poisson", "fit")

    def ours(self) -> list[Case]:
        cases = [preset(self.problem, name, SUBDOMAINS, Limits(passes=self.passes)) for name in self.presets]
        return [replace(case, seeds=0, every=100 if self.known else 1) for case in cases]

    def tuned(self, method: str, rate: float, seeds: int = 0) -> Case:
        options = f"--method {method} --baseline.lr {rate:g} --baseline.schedule cosine --data.batch {self.batch} --data.overlap 0"
        name, until = f"{self.problem}/{method}-cosine-{self.batch}-{rate:g}", Limits(epochs=self.passes)
        label = f"{'Adam' if method == 'adam' else method.upper()} {self.batch}"
        return Case(name, PROBLEMS[self.problem], label, options, until, seeds=seeds, every=self.steps * (100 if self.known else 1))

    def search(self, method: str) -> list[Case]:
        return [self.tuned(method, rate, seeds=1) for rate in self.rates[method]]


PLACES = (
    Place("cifar10-resnet", 24, 125, 400, {"adam": (1e-3, 3e-3, 1e-2, 3e-2), "sgd": (0.01, 0.03, 0.1, 0.3)}),
    Place("text-transformer", 20, 64, 245, {"adam": (3e-4, 1e-3, 3e-3, 1e-2), "sgd": (0.01, 0.03, 0.1, 0.3)}),
    Place("poisson", 3000, 256, 16, {"adam": (1e-3, 3e-3, 1e-2, 3e-2), "sgd": (1e-5, 3e-5, 1e-4, 3e-4)}),
    Place("fit", 3000, 256, 16, {"adam": (3e-3, 1e-2, 3e-2, 0.1), "sgd": (0.03, 0.1, 0.3, 1.0)}),
)


def searches(places: Sequence[Place] = PLACES) -> list[Case]:
    """The first stage: ours with all seeds, every rate with one."""
    return [case for place in places for case in (*place.ours(), *(one for method in place.rates for one in place.search(method)))]


def finals(store: Store, places: Sequence[Place] = PLACES) -> list[Case]:
    """The second stage: the best rates with all seeds."""
    best = [(place, method, _best(place, method, store)) for place in places for method in place.rates]
    return [place.tuned(method, found[0]) for place, method, found in best if found]


def _figures(place: Place, case: Case, curve: Curve, store: Store) -> dict[str, float]:
    """What a run shows at its budget."""
    cut = curve.cut(case.until)
    ended = worth(folder_of(store.runs, case, curve.seed)) if cut else {}
    return {**cut, **{name: ended.get(name, math.nan) for name in ("test_loss", "error")}} if cut else {}


def _best(place: Place, method: str, store: Store) -> tuple[float, float, int] | None:
    """The best rate, the passes of all runs of the search, and how many there are; None before any."""
    scored, passes = [], 0.0
    for rate in place.rates[method]:
        case = place.tuned(method, rate, seeds=1)
        curve = next((curve for curve in store.curves(case) if curve.seed == 0 and curve.enough(case.until)), None)
        if curve is None or not len(curve.accuracy):
            continue
        passes += float(curve.used.passes[-1])
        value = worth(folder_of(store.runs, case, 0)).get("error", math.inf) if place.known else -_accuracy(curve, case)
        scored.append((value if math.isfinite(value) else math.inf, rate))
    return (min(scored)[1], passes, len(scored)) if scored else None


def _accuracy(curve: Curve, case: Case) -> float:
    return curve.cut(case.until).get("accuracy", math.nan)


def row(place: Place, case: Case, store: Store, label: str, tuning: float = 0.0) -> Row:
    """A line of the table."""
    curves = [curve for curve in store.curves(case) if curve.enough(case.until)]
    found = [figures for figures in (_figures(place, case, curve, store) for curve in curves) if figures]
    columns = {name: [one[name] for one in found] for name in ("accuracy", "test_loss", "error", "passes", "reductions", "seconds")}
    whole = {curve.status for curve in curves if curve.whole}
    return {
        "problem": case.problem.title, "method": label, "options": case.options, "runs": len(found), "ended": ", ".join(sorted(whole)),
        "n": curves[0].n_params if curves else None, "tuning": tuning,
        "shown": spread(columns["accuracy"]) if not place.known else "-", "error_shown": spread(columns["error"], ".2e"),
        "test_loss_shown": spread(columns["test_loss"], ".3g"), **{name: mean(values) for name, values in columns.items()},
    }  # fmt: skip


def rows(place: Place, store: Store) -> list[Row]:
    """Ours, then the tuned ones; a rate at the end of its grid is marked, since a better one may lie beyond."""
    lines = [row(place, case, store, f"`{name}`") for name, case in zip(place.presets, place.ours(), strict=True)]
    for method, rates in place.rates.items():
        found = _best(place, method, store)
        if found:
            rate, passes, count = found
            case, edge = place.tuned(method, rate), ", end of the grid" if rate in (min(rates), max(rates)) else ""
            missing = "" if count == len(rates) else f", {count} of {len(rates)} tried"
            lines.append(row(place, case, store, f"{case.method}, rate {rate:g}{edge}{missing}", passes))
    return [line for line in lines if line["runs"]]


def tables(store: Store, places: Sequence[Place] = PLACES) -> list[Table]:
    """All problems in one table; none without runs."""
    lines = [line for place in places for line in rows(place, store)]
    used = [curve for case in (*searches(places), *finals(store, places)) for curve in store.curves(case)]
    return [Table("beyond", "Beyond the paper", RULE, COLUMNS, lines, used)] if lines else []


COLUMNS = {
    "problem": ("problem", ""), "n": ("n", ",d"), "method": ("method", ""), "shown": ("test accuracy %", ""),
    "test_loss_shown": ("test loss", ""), "error_shown": ("error of u", ""), "passes": ("gradient evaluations", ".1f"),
    "reductions": ("reductions", ",.0f"), "seconds": ("seconds", ".0f"), "tuning": ("tuning, evaluations", ",.0f"),
    "runs": ("seeds", "d"), "ended": ("ended early", ""),
}  # fmt: skip
