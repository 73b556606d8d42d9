"""The sentences of a scaling report: what is said follows from the points alone."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

from apts_mpi.study.figures import called, sentence
from apts_mpi.study.figures_scaling import WITHIN, Predictions
from apts_mpi.study.points import Point, Points
from apts_mpi.study.report_tables import error, number, spread
from apts_mpi.study.statistics import DRAWS, ENOUGH, WIDE, Case, Series, distinct_cases, networks

SAME = (  # in all runs
    "package_version", "source_sha256", "git_commit", "versions", "mpi_library", "system", "cpu", "threads_per_rank", "data_fingerprint",
)  # fmt: skip
NAMES = {
    "package_version": "package", "source_sha256": "source hash", "git_commit": "commit", "versions": "versions",
    "mpi_library": "MPI library", "system": "system", "cpu": "processor", "threads_per_rank": "threads per rank",
    "data_fingerprint": "data fingerprint", "hosts": "hosts", "devices": "devices", "environment": "environment",
    "started_utc": "started", "peak_flops": "peak, flop/s",
}  # fmt: skip
PLURALS = {"commit": "commits", "source hash": "source hashes", "MPI library": "MPI libraries", "versions": "sets of versions"}
COMPARED = (  # field, its words, the words of a ratio
    ("target_seconds", "s to the target", "times as long"),
    ("target_passes", "passes of gradient evaluations to the target", "times as many"),
)


def plural(count: int, word: str, many: str = "") -> str:
    """'1 run', '2 runs'."""
    return f"{count} {word if count == 1 else many or word + 's'}"


def summary(points: Points, series: Sequence[Series]) -> list[str]:
    """What was run, in one paragraph, and what the marks in the tables mean."""
    crowded = any(p.oversubscribed for p in points.points)
    mark = " A dagger marks oversubscribed cases, whose seconds say nothing about speed." if crowded else ""
    busy, noisy = sum(p.noisy for p in points.points), len(_noisy(series))
    return [
        f"{len(points.points)} of {plural(points.planned, 'run')} finished, {len(points.failed)} failed, {_untried(points)} not tried; "
        f"{plural(noisy, 'case')} noisy, {plural(busy, 'run')} begun on a busy machine.{mark} '-': does not exist."
    ]


def _noisy(series: Sequence[Series]) -> list[Case]:
    return [case for case in distinct_cases(series) if case.noisy]


def noise(series: Sequence[Series]) -> list[str]:
    """A warning where the seconds of some cases differ much from run to run."""
    noisy, timed = len(_noisy(series)), sum(not case.crowded for case in distinct_cases(series))
    if not noisy:
        return []
    told = "is noisy: its 95 % interval" if noisy == 1 else "are noisy: their 95 % intervals"
    return [
        f"{noisy} of {plural(timed, 'case')} {told} of the seconds of an outer iteration {'is' if noisy == 1 else 'are'} wider than "
        f"{100 * WIDE:g} % of the median; the machine was not quiet."
    ]


def trust(series: Sequence[Series], predictions: Predictions) -> list[str]:
    """A warning where the cost model misses what was measured here."""
    errors = [off for case in distinct_cases(series) if not math.isnan(off := error(case, predictions))]
    missed = [off for off in errors if abs(off) > WITHIN]
    if not missed:
        return []
    return [
        f"WARNING: The cost model misses {len(missed)} of {plural(len(errors), 'case')} measured here by more than {100 * WITHIN:g} %, "
        f"at worst by {100 * max(missed, key=abs):+.0f} %: what it says of machines that are not here is no better."
    ]


def _untried(points: Points) -> int:
    return points.planned - len(points.failed) - len(points.points)


def base_case(series: Sequence[Series]) -> list[str]:
    """T(P0) of every series, in absolute terms."""
    found = []
    for one in series:
        base, where = one.base, f"{sentence(one.scaling)} scaling, {called(one.network)}: {one.method}"
        if base is None:
            found.append(f"{where} has no base case, since every run of it was oversubscribed.")
            continue
        per_pass = spread(base.estimate("seconds_per_pass"))
        where += f" on P0 = {plural(base.ranks, 'rank')} takes"
        found.append(f"{where} {spread(base.estimate('iteration_seconds'), 4)} s for an outer iteration, {per_pass} s for a pass.")
    return found


def losses(points: Points, series: Sequence[Series]) -> list[str]:
    """A sentence for every case in which other methods are ahead of the best APTS method."""
    ours, others = [s for s in series if s.kind == "apts"], [s for s in series if s.kind != "apts"]
    if not math.isfinite(points.target_accuracy):
        return ["The study has no target accuracy, so no time to a target can be compared."]
    if not ours or not others:
        return [f"There is nothing to compare: the study has no {'method beside APTS' if ours else 'APTS method'}."]
    pairs = [(case, rivals) for one in others for case in one.cases if (rivals := _rivals(case, ours))]
    ahead: dict[tuple[str, str], list[str]] = {}
    for row in COMPARED:
        for case, rivals in pairs:
            if behind := _behind(case, rivals, *row):
                ahead.setdefault((row[0], behind[0]), []).append(behind[1])
    found = [f"{lead}{', '.join(those)}." for (_, lead), those in ahead.items()]
    compared = plural(len(pairs), "comparison")
    return found or [f"In {compared} by scaling, network, ranks and other method APTS never needed more time or gradient evaluations."]


def _rivals(case: Case, ours: Sequence[Series]) -> list[Case]:
    here = (case.scaling, case.network, case.ranks)
    return [own for one in ours for own in one.cases if (own.scaling, own.network, own.ranks) == here]


def _behind(case: Case, rivals: Sequence[Case], name: str, words: str, times: str) -> tuple[str, str] | None:
    """What the best of ``rivals`` needs, and what ``case`` does; None if that is not less."""
    theirs = case.estimate(name)
    known = [(own.estimate(name), own.method) for own in rivals]
    best, method = min(((e, m) for e, m in known if not math.isnan(e.median)), key=lambda pair: pair[0].median, default=(theirs, ""))
    if not best.median > theirs.median:  # nan too: no seconds to compare
        return None
    where = f"{sentence(case.scaling)} scaling, {called(case.network)}, {plural(case.ranks, 'rank')}"
    if math.isinf(best.median):
        return f"{where}: {method} does not reach the target in most runs; ", f"{case.method} does with {spread(theirs)} {words}"
    factor = f"{best.median / theirs.median:.3g} {times}"
    unsure = "; the intervals overlap" if best.low <= theirs.high else ""
    return f"{where}: {method} needs {spread(best)} {words}, ", f"{case.method} {spread(theirs)} ({factor}{unsure})"


def marked(points: Points, series: Sequence[Series]) -> list[str]:
    """Runs that failed or were noisy, by name, and cases with oversubscribed runs."""
    busy, noisy = [p.run for p in points.points if p.noisy], [_where(case) for case in _noisy(series)]
    crowded = [_crowded(case) for one in series for case in one.cases if any(run.oversubscribed for run in case.runs)]
    off = "copy bandwidth more than 15 % below the host's median just before; used like all others"
    return [
        f"{len(points.points)} of {plural(points.planned, 'planned run')} finished; {_untried(points)} not tried.",
        _named(points.failed, "run", "failed", "no result, not used"), _named(busy, "run", "begun on a busy machine", off),
        _named(noisy, "case", "noisy", f"interval of the seconds of an outer iteration wider than {100 * WIDE:g} % of the median", "; "),
        _named(crowded, "case", "oversubscribed", "more threads than cores; seconds enter no statistics and carry a dagger", "; "),
    ]  # fmt: skip


def _crowded(case: Case) -> str:
    runs = f"{sum(run.oversubscribed for run in case.runs)} of {plural(len(case.runs), 'run')}"
    return f"{_where(case)} ({runs})"


def _where(case: Case) -> str:
    return f"{case.method}, {case.scaling}, {called(case.network)}, {plural(case.ranks, 'rank')}"


def _named(names: Sequence[str], word: str, state: str, why: str, between: str = ", ") -> str:
    if not names:
        return f"No {word} {state}."
    return f"{plural(len(names), word)} {state} ({why}): {between.join(names)}."


def warnings(points: Points) -> list[str]:
    """What differs between the runs and must not."""
    found = []
    for key in SAME:
        values = distinct(points.points, key)
        if len(values) > 1:
            name = NAMES[key]
            found.append(f"The runs come from {len(values)} different {PLURALS.get(name, 'values of ' + name)}: {'; '.join(values)}.")
    for nodes in sorted({p.nodes for p in points.points}):
        values = distinct([p for p in points.points if p.nodes == nodes], "hosts")
        if len(values) > 1:
            found.append(f"The runs on {plural(nodes, 'node')} come from {len(values)} different sets of hosts: {'; '.join(values)}.")
    return found


def distinct(runs: Sequence[Point], key: str) -> list[str]:
    """The different values of one fact as text; hosts and devices as sets."""
    found = [run.machine.get(key) for run in runs]
    return sorted({_text(value) for value in found if value not in (None, "", [], {})})


def _text(value: Any) -> str:
    if isinstance(value, float):
        return number(value)
    if isinstance(value, list):
        return ", ".join(sorted({str(entry) for entry in value}))
    if isinstance(value, dict):
        return ", ".join(f"{key} {entry}" for key, entry in sorted(value.items()))
    return value if isinstance(value, str) else json.dumps(value)


def provenance(points: Points) -> list[str]:
    """'name: value' of everything that is known of the machine and the code."""
    keys = list(dict.fromkeys([*NAMES, *(key for run in points.points for key in run.machine)]))
    found = [(NAMES.get(key, key), distinct(points.points, key)) for key in keys]
    return [f"{name}: {_range(values) if name in ('started', 'peak, flop/s') else '; '.join(values)}" for name, values in found if values]


def _range(values: Sequence[str]) -> str:
    return values[0] if len(values) == 1 else f"{values[0]} to {values[-1]}"


def methods(points: Points, series: Sequence[Series]) -> Iterator[str]:
    """How it was measured and what the words mean."""
    seeds = ", ".join(map(str, sorted({p.seed for p in points.points})))
    params = ", ".join(f"{count:,}" for count in sorted({p.n_params for p in points.points}))
    places = ", ".join(called(name) for name in networks(points))
    yield (
        f"{plural(len(points.methods), 'method')} on {plural(len(networks(points)), 'network')} ({places}), "
        f"{plural(points.repetitions, 'repetition')} of {plural(seeds.count(',') + 1, 'seed')} ({seeds}), "
        f"{plural(points.threads, 'thread')} per rank, n = {params} parameters. Methods and rank counts take turns within a repetition, "
        "and the method that begins changes, so that whatever else the machine does meets all of them."
    )
    yield (
        "Strong scaling keeps the samples |D|, the minibatch and the subdomains; weak scaling keeps them per rank, so the algorithm "
        "changes with the ranks. Seconds are rank 0's, which the sums keep in step with the others, without test evaluations and the "
        "writing of records. Seconds of an outer iteration are the median over the iterations behind the first three. "
        "Outer iterations of different methods are different "
        "work: compare methods by passes and by the target. Passes are gradient evaluations divided by |D|. Bytes are the payload that "
        "one rank sends."
    )
    yield from _statistics(points, series)


def _statistics(points: Points, series: Sequence[Series]) -> Iterator[str]:
    yield (
        f"Every number is the median over repetitions and seeds, with its 95 % confidence interval by percentile bootstrap ({DRAWS} draws, "
        "fixed seed); a case with one value, or with equal values, has none. Speed-up S(P) = T(P0) / T(P), efficiency S(P) P0 / P in "
        "strong and T(P0) / T(P) in weak scaling are computed run by run (same seed and repetition), P0 being the smallest rank count."
    )
    fewest = min(len(case.runs) for one in series for case in one.cases)
    if fewest < ENOUGH:
        yield (
            f"The smallest case has {plural(fewest, 'run')}. With fewer than {ENOUGH} values the interval is the range at best: the range "
            f"of n values holds the median with probability 1 - 2^(1 - n): {100 * (1 - 2.0 ** (1 - fewest)):.3g} % for n = {fewest}."
        )
    if math.isfinite(points.target_accuracy):
        yield (
            f"The target is {points.target_accuracy:g} % of the test set. A run that does not reach it counts as later than all others, "
            "so a median is 'not reached' when half of the runs miss it."
        )
