"""Beyond the paper: a residual network, a character transformer, and problems with a known answer, with the same constants for all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from paper.cases import BASELINE_MEAN, LAST, MEAN, NO_METRIC, OUR_PRESET, PROBLEMS, READ_BOTH, Case, preset
from paper.curves import Curve, folder_of
from paper.limits import Limits
from paper.store import Store
from paper.table import Row, Table, marked, mean, ranks, spread, timed
from paper.worth import worth

SUBDOMAINS = 2
PRESETS = ("lsr1", "default")
RULE = (
    "Every method has the same number of gradient evaluations, in passes over the training set, fixed before the runs. Adam, and SGD with "
    "momentum 0.9, in small minibatches with a cosine schedule down to zero; their learning rate is the best of a small grid by the figure "
    "that is shown (accuracy, or error of u), found with one seed. Accuracy at the last outer iteration within the budget; test loss and "
    "error of u with the parameters at the end, an outer iteration later at most, else a dash. Mean [least, largest] of the seeds. "
    "Tuning: gradient evaluations of all runs of the search. Every method is there twice, at its last iterate and at the mean of its "
    "iterates, Adam and SGD with a search for each. Losses alone in passes; seconds of runs that had the machine for themselves. "
    f"{READ_BOTH}"
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
    smaller: tuple[int, int] | None = None  # minibatch of one more row of ours, and how many times smaller it is: more sums

    @property
    def known(self) -> bool:
        """Whether it has an answer, so that an error is shown and not an accuracy."""
        return PROBLEMS[self.problem].data in ("poisson", "fit")

    def ours(self) -> list[Case]:
        """Every preset, and as it is not: `lsr1` at the mean of its iterates, ours at the last one; full batch: and without metric.

        And ours in smaller minibatches, tested after as many samples as with the problem's.
        """
        until, cases = Limits(passes=self.passes), list[Case]()
        for name in self.presets:
            other = (LAST, "last") if name == OUR_PRESET else (MEAN, "mean")
            cases += [preset(self.problem, name, SUBDOMAINS, until), preset(self.problem, name, SUBDOMAINS, until, *other)]
        if PROBLEMS[self.problem].batches == 1 and OUR_PRESET in self.presets:
            cases.append(preset(self.problem, OUR_PRESET, SUBDOMAINS, until, NO_METRIC, "no-metric"))
        cases = [replace(case, seeds=0, every=100 if self.known else 1) for case in cases]
        if self.smaller:
            batch, times = self.smaller
            case = preset(self.problem, OUR_PRESET, SUBDOMAINS, until, f"--data.batch {batch}", f"batch-{batch}")
            cases.append(replace(case, seeds=0, every=times))
        return cases

    @property
    def families(self) -> list[tuple[str, bool]]:
        """Methods with a learning rate, at the last iterate and at the mean."""
        return [(method, at_mean) for method in self.rates for at_mean in (False, True)]

    def tuned(self, method: str, rate: float, at_mean: bool = False, seeds: int = 0) -> Case:
        options = f"--method {method} --baseline.lr {rate:g} --baseline.schedule cosine --data.batch {self.batch} --data.overlap 0"
        options += f" {BASELINE_MEAN}" if at_mean else ""
        name, until = f"{self.problem}/{method}{'-mean' if at_mean else ''}-cosine-{self.batch}-{rate:g}", Limits(epochs=self.passes)
        label = f"{'Adam' if method == 'adam' else method.upper()} {self.batch}{', mean' if at_mean else ''}"
        return Case(name, PROBLEMS[self.problem], label, options, until, SUBDOMAINS, seeds, self.steps * (100 if self.known else 1))

    def search(self, method: str, at_mean: bool = False) -> list[Case]:
        return [self.tuned(method, rate, at_mean, seeds=1) for rate in self.rates[method]]


PLACES = (
    Place("cifar10-resnet", 24, 125, 400, {"adam": (1e-3, 3e-3, 1e-2, 3e-2), "sgd": (0.01, 0.03, 0.1, 0.3)}, smaller=(2000, 5)),
    Place("text-transformer", 4, 64, 245, {"adam": (3e-4, 1e-3, 3e-3, 1e-2), "sgd": (0.01, 0.03, 0.1, 0.3)}, smaller=(500, 5)),
    Place("poisson", 1000, 256, 16, {"adam": (1e-3, 3e-3, 1e-2, 3e-2), "sgd": (1e-5, 3e-5, 1e-4, 3e-4)}),
    Place("fit", 1000, 256, 16, {"adam": (3e-3, 1e-2, 3e-2, 0.1), "sgd": (0.03, 0.1, 0.3, 1.0)}),
)


def searches(places: Sequence[Place] = PLACES) -> list[Case]:
    """The first stage: ours with all seeds, every rate with one."""
    return [case for place in places for case in (*place.ours(), *(one for family in place.families for one in place.search(*family)))]


def finals(store: Store, places: Sequence[Place] = PLACES) -> list[Case]:
    """The second stage: the best rates with all seeds."""
    best = [(place, family, _best(place, *family, store)) for place in places for family in place.families]
    return [place.tuned(method, found[0], at_mean) for place, (method, at_mean), found in best if found]


def at_end(case: Case, curve: Curve, store: Store) -> dict[str, float]:
    """What the parameters at its end are worth, which are those of the budget if it went no more than an iteration beyond; else nothing."""
    near = len(curve.accuracy) <= case.until.within(curve.used) + 1
    known = curve.worth  # of a record
    return (worth(folder_of(store.runs, case, curve.seed)) if known is None else known) if near else {}


def _figures(case: Case, curve: Curve, store: Store) -> dict[str, float]:
    """What a run shows at its budget."""
    cut = curve.cut(case.until)
    ended = at_end(case, curve, store) if cut else {}
    return {**cut, **{name: ended.get(name, math.nan) for name in ("test_loss", "error")}} if cut else {}


def _best(place: Place, method: str, at_mean: bool, store: Store) -> tuple[float, float, list[float]] | None:
    """The best rate, the passes of all runs of the search, and the rates of these; None before any."""
    scored, passes = [], 0.0
    for rate in place.rates[method]:
        case = place.tuned(method, rate, at_mean, seeds=1)
        curve = next((curve for curve in store.finished(case) if curve.seed == 0), None)
        if curve is None or not len(curve.accuracy):
            continue
        passes += float(curve.used.passes[-1])
        value = at_end(case, curve, store).get("error", math.inf) if place.known else -_accuracy(curve, case)
        scored.append((value if math.isfinite(value) else math.inf, rate))
    return (min(scored)[1], passes, [rate for _, rate in scored]) if scored else None


def _accuracy(curve: Curve, case: Case) -> float:
    return curve.cut(case.until).get("accuracy", math.nan)


def row(place: Place, case: Case, store: Store, label: str, tuning: float = 0.0) -> Row:
    """A line of the table."""
    curves = store.finished(case)
    found = [figures for figures in (_figures(case, curve, store) for curve in curves) if figures]
    names = ("accuracy", "test_loss", "error", "passes", "values", "reductions", "seconds")
    columns = {name: [one[name] for one in found] for name in names}
    whole = {curve.status for curve in curves if curve.whole}
    line: Row = {
        "problem": case.problem.title, "method": label, "options": case.options, "runs": len(found), "ended": ", ".join(sorted(whole)),
        "n": curves[0].n_params if curves else None, "tuning": tuning, "ranks": ranks(curves),
        "shown": spread(columns["accuracy"]) if not place.known else "-", "error_shown": spread(columns["error"], ".2e"),
        "test_loss_shown": spread(columns["test_loss"], ".3g"), **{name: mean(values) for name, values in columns.items()},
    }  # fmt: skip
    return marked(line | {"seconds": timed(curves, line["seconds"])}, "method", curves)


def rows(place: Place, store: Store) -> list[Row]:
    """Ours, then the tuned ones; a rate at the end of its grid, or of what was tried, is marked, since a better one may lie beyond."""
    lines = [row(place, case, store, case.method) for case in place.ours()]
    for method, at_mean in place.families:
        found, rates = _best(place, method, at_mean, store), place.rates[method]
        if found:
            rate, passes, tried = found
            case, edge = place.tuned(method, rate, at_mean), ""
            if rate in (min(tried), max(tried)):
                edge = ", end of the grid" if rate in (min(rates), max(rates)) else ", end of those tried"
            missing = "" if len(tried) == len(rates) else f", {len(tried)} of {len(rates)} tried"
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
    "values": ("losses alone", ".1f"), "ranks": ("ranks", ""),
    "reductions": ("reductions", ",.0f"), "seconds": ("seconds", ".0f"), "tuning": ("tuning, evaluations", ",.0f"),
    "runs": ("seeds", "d"), "ended": ("ended early", ""),
}  # fmt: skip
