"""A study in words: what it will do and cost, and how far it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from apts_mpi.study.definition import Study
from apts_mpi.study.execute import crowded, duration
from apts_mpi.study.plan import Run


@dataclass(frozen=True)
class Duration:
    """Seconds of a run with its start, at most: it may reach its target earlier."""

    seconds: float
    source: str  # measured, model, assumed


def groups(runs: Sequence[Run]) -> dict[tuple[object, ...], list[int]]:
    """Indices of the runs of each case, in order of their first run."""
    found: dict[tuple[object, ...], list[int]] = {}
    for index, run in enumerate(runs):
        found.setdefault((*run.case, run.scalings), []).append(index)
    return found


def planned(study: Study, runs: Sequence[Run], estimates: Sequence[Duration]) -> Iterator[str]:
    """The table of cases and the sums."""
    yield f"{study.title or study.name}: {len(runs)} runs into {study.home}"
    names = f"{'method':<22} {'network':<10} {'scaling':<12} {'P':>4} {'nodes':>5} {'N':>4} {'samples':>8}"
    yield f"{names} {'batch':>7} {'runs':>4} {'each':>8}"
    marked = False
    for rows in groups(runs).values():
        run, mean = runs[rows[0]], sum(estimates[i].seconds for i in rows) / len(rows)
        config, mark = run.config, "*" if crowded(study, run.ranks) else ""
        marked = marked or bool(mark)
        name = f"{run.method.name:<22} {run.network.name or '-':<10} {'+'.join(run.scalings):<12} {str(run.ranks) + mark:>4}"
        sizes = f"{run.nodes:>5} {run.subdomains:>4} {config.data.limit or 'all':>8} {config.data.batch or 'full':>7}"
        yield f"{name} {sizes} {len(rows):>4} {duration(mean):>8}"
    if marked:
        yield "* more threads than the cores of this machine: on it these runs are " + ("marked" if study.oversubscribe else "refused")
    yield from _sums(runs, estimates)


def _sums(runs: Sequence[Run], estimates: Sequence[Duration]) -> Iterator[str]:
    left = [i for i, run in enumerate(runs) if not run.done]
    total = sum(estimates[i].seconds for i in left)
    hours = sum(estimates[i].seconds * runs[i].nodes for i in left) / 3600
    sources = Counter(each.source for each in estimates)
    yield f"{len(runs) - len(left)} are done, {len(left)} to make: at most {duration(total)} one after the other, {hours:.2g} node-hours"
    how = {
        "measured": "from finished runs of the same kind", "model": "by the cost model with this machine's calibration",
        "assumed": "on an assumed machine: apts-mpi scale run calibrates first",
    }  # fmt: skip
    yield "estimates: " + ", ".join(f"{count} {how[source]}" for source, count in sources.most_common())


def status(study: Study, runs: Sequence[Run], states: Sequence[str]) -> Iterator[str]:
    """A line for every case, and how many runs are left."""
    yield f"{'method':<22} {'network':<10} {'scaling':<12} {'P':>4} {'N':>4} {'samples':>8} {'done':>5} {'failed':>6} {'missing':>7}"
    for rows in groups(runs).values():
        run, count = runs[rows[0]], Counter(states[i] for i in rows)
        yield (
            f"{run.method.name:<22} {run.network.name or '-':<10} {'+'.join(run.scalings):<12} {run.ranks:>4} {run.subdomains:>4} "
            f"{run.config.data.limit or 'all':>8} {count['done']:>5} {count['failed']:>6} {count['missing']:>7}"
        )
    total = Counter(states)
    yield f"{total['done']} of {len(runs)} done, {total['failed']} failed, {total['missing']} missing"
    for run, each in zip(runs, states, strict=True):
        if each == "failed":
            yield f"failed: {run.id}, see {run.folder.with_name(run.id + '.log')}"
