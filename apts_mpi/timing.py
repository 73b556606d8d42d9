"""Where the wall time goes: named regions, three phases, one table over all ranks.

A single clock is always charged to exactly one region, the innermost that is open, or to
``other`` when none is. So a region's time is its own (that of a nested region is counted
there) and the shares of a phase add to 100 %. Clock: ``perf_counter_ns``, never the date.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from time import perf_counter_ns
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from apts_mpi.tracing import Tracer

LOCAL_SOLVE = "local solve"
EVALUATE = "evaluate"
MODEL = "model"  # the quasi-Newton model and its subproblem
PACK = "pack"
WAIT = "wait"  # for slower ranks, measured only when asked
REDUCE = "reduce"
ACCEPT = "accept"
TEST = "test"
IO = "io"
OTHER = "other"  # everything outside the regions
REGIONS = (LOCAL_SOLVE, EVALUATE, MODEL, PACK, WAIT, REDUCE, ACCEPT, TEST, IO, OTHER)

SET_UP = "set-up"
WARM_UP = "warm-up"
RUN = "run"
PHASES = (SET_UP, WARM_UP, RUN)

FIELDS = ("calls", "seconds", "messages", "bytes")  # of one region in one phase, as in Timers.row


class _Region:
    """The context manager of one region; made once and used again at every entry."""

    __slots__ = ("_index", "_name", "_timers")

    def __init__(self, timers: Timers, index: int) -> None:
        self._timers, self._index, self._name = timers, index, REGIONS[index]

    def __enter__(self) -> None:
        timers = self._timers
        if timers.tracer is not None:
            timers.tracer.begin(self._name)
        if timers.synchronise is not None and not timers._stack:
            timers.synchronise()
        now = timers._clock()
        outer = timers._current
        timers._time[outer] += now - timers._since
        timers._stack.append(outer)
        timers._current = index = self._index
        timers._calls[index] += 1
        timers._since = now

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        timers = self._timers
        if timers.synchronise is not None and len(timers._stack) == 1:
            timers.synchronise()
        now = timers._clock()
        timers._time[timers._current] += now - timers._since
        timers._current = timers._stack.pop()
        timers._since = now
        if timers.tracer is not None:
            timers.tracer.end(self._name)


class Timers:
    """Region timers of one rank, in phase ``set-up`` from their construction on.

    ``synchronise`` waits for the device at the borders of regions that lie in no other; None on a CPU. ``tracer`` hears the names.
    One thread only.
    """

    def __init__(
        self, synchronise: Callable[[], None] | None = None, clock: Callable[[], int] = perf_counter_ns, tracer: Tracer | None = None
    ) -> None:
        self.synchronise, self.tracer = synchronise, tracer
        self._clock = clock
        self._regions = {name: _Region(self, index) for index, name in enumerate(REGIONS)}
        self._laps = array("f")  # s, one row of all regions after the other
        size = range(len(REGIONS))
        self._times = {phase: [0 for _ in size] for phase in PHASES}  # ns
        self._counts = {phase: [0 for _ in size] for phase in PHASES}
        self._traffic = {phase: [[0, 0] for _ in size] for phase in PHASES}
        self._lap = [0 for _ in size]
        self._stack: list[int] = []
        self._current = REGIONS.index(OTHER)
        self._since = clock()
        self._select(SET_UP)

    def __call__(self, region: str) -> AbstractContextManager[None]:
        """Time what runs inside; ValueError for a name that is not in REGIONS."""
        try:
            return self._regions[region]
        except KeyError:
            raise ValueError(f"unknown timer region {region!r}; the regions are {', '.join(REGIONS)}") from None

    def phase(self, name: str) -> None:
        """From now on charge ``name`` (one of PHASES); only between regions."""
        if name not in PHASES:
            raise ValueError(f"unknown timer phase {name!r}; the phases are {', '.join(PHASES)}")
        if self._stack:
            raise RuntimeError(f"timer phase {name!r} begins inside region {REGIONS[self._current]!r}; leave the region first")
        if self.synchronise is not None:
            self.synchronise()
        self._charge()
        self._select(name)

    def count(self, region: str, messages: int, nbytes: int) -> None:
        """Add messages and payload bytes of this rank to ``region`` in the current phase."""
        traffic = self._traffic[self._phase][REGIONS.index(region)]
        traffic[0] += messages
        traffic[1] += nbytes

    def entered(self) -> int:
        """Regions entered so far; another thread may ask whether this one gets on."""
        return sum(map(sum, self._counts.values()))

    def lap(self) -> dict[str, float]:
        """Seconds per region since the last lap, or since the phase began; ``laps`` keeps them in float32."""
        self._charge()
        since = [1e-9 * (now - then) for now, then in zip(self._time, self._lap, strict=True)]
        self._lap = list(self._time)
        self._laps.extend(since)
        return dict(zip(REGIONS, since, strict=True))

    def recent(self, count: int) -> list[float]:
        """Seconds of each of the last ``count`` laps, all regions together."""
        size = len(REGIONS)
        flat = self._laps[-count * size :]
        return [sum(flat[start : start + size]) for start in range(0, len(flat), size)]

    def laps(self, region: str) -> array[float]:
        """Seconds of ``region`` in every lap so far, float32; 4 bytes for each region and lap stay in memory."""
        return self._laps[REGIONS.index(region) :: len(REGIONS)]

    def elapsed(self) -> float:
        """Seconds charged to the current phase so far."""
        self._charge()
        return sum(self._time) * 1e-9

    def row(self) -> list[float]:
        """All that was counted on this rank, as the flat row that ``table`` reads; for ``comm.gather``."""
        self._charge()
        return [
            float(value)
            for phase in PHASES
            for calls, time, traffic in zip(self._counts[phase], self._times[phase], self._traffic[phase], strict=True)
            for value in (calls, time * 1e-9, *traffic)
        ]

    def _charge(self) -> None:
        now = self._clock()
        self._time[self._current] += now - self._since
        self._since = now

    def _select(self, phase: str) -> None:
        self._phase = phase
        self._time, self._calls = self._times[phase], self._counts[phase]
        self._lap = list(self._time)


@dataclass(frozen=True)
class RegionTime:
    """One line of the table: a region in a phase, over all ranks."""

    phase: str
    region: str
    calls: int  # most on a rank
    low: float  # s, least of all ranks
    mean: float  # s
    high: float  # s, most of all ranks
    imbalance: float  # high / mean, 1 when balanced
    share: float  # per cent of the phase, summed over ranks
    messages: int  # most on a rank
    bytes: int  # most on a rank


def split(row: Sequence[float]) -> dict[str, dict[str, dict[str, float]]]:
    """A row of ``Timers.row`` as phase -> region -> field -> value."""
    if len(row) != len(PHASES) * len(REGIONS) * len(FIELDS):
        raise ValueError(f"a timer row has {len(PHASES) * len(REGIONS) * len(FIELDS)} values, got {len(row)}")
    values = iter(row)
    return {phase: {region: {name: next(values) for name in FIELDS} for region in REGIONS} for phase in PHASES}


def table(rows: Sequence[Sequence[float]]) -> list[RegionTime]:
    """The lines of the phase table from each rank's ``Timers.row``; regions that never ran are left out."""
    ranks = [split(row) for row in rows]
    lines = []
    for phase in PHASES:
        total = sum(cell["seconds"] for rank in ranks for cell in rank[phase].values())
        for region in REGIONS:
            cells = [rank[phase][region] for rank in ranks]
            if any(any(cell.values()) for cell in cells):
                lines.append(_line(phase, region, cells, total))
    return lines


def _line(phase: str, region: str, cells: Sequence[dict[str, float]], total: float) -> RegionTime:
    seconds = [cell["seconds"] for cell in cells]
    mean, high = sum(seconds) / len(seconds), max(seconds)
    calls, messages, nbytes = (int(max(cell[name] for cell in cells)) for name in ("calls", "messages", "bytes"))
    imbalance = high / mean if mean > 0 else 1.0
    share = 100 * sum(seconds) / total if total > 0 else 0.0
    return RegionTime(phase, region, calls, min(seconds), mean, high, imbalance, share, messages, nbytes)


def size_text(nbytes: float) -> str:
    """Bytes for people: '12.3 MB'; powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 999.5:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.3g} {unit}"
        nbytes /= 1000
    return f"{nbytes:.3g} TB"


_COLUMNS = {"calls": 8, "min s": 9, "mean s": 9, "max s": 9, "imbal": 6, "share": 7, "messages": 9, "bytes": 9}


def render(lines: Sequence[RegionTime], width: int | None = None) -> list[str]:
    """The phase table as text, 95 columns wide, with fewer columns where it must not be wider than ``width``."""
    shown, names = dict(_COLUMNS), {name: name for name in _COLUMNS}
    for name in ("min s", "max s", "messages", "bytes"):  # what a narrow terminal does without
        if width is not None and len(_row("", "", names, shown)) > width:
            del shown[name]
    text = [_row("phase", "region", names, shown)]
    for phase in PHASES:
        if inside := [line for line in lines if line.phase == phase]:
            text += [_row(phase, line.region, _cells(line), shown) for line in inside]
            text.append(_row(phase, "total", {"mean s": f"{sum(line.mean for line in inside):.3f}"}, shown))
    return text


def _row(phase: str, region: str, cells: dict[str, str], shown: dict[str, int]) -> str:
    return f"{phase:<8} {region:<12} {' '.join(cells.get(name, '').rjust(width) for name, width in shown.items())}".rstrip()


def _cells(line: RegionTime) -> dict[str, str]:
    found = {"calls": str(line.calls or ""), "min s": f"{line.low:.3f}", "mean s": f"{line.mean:.3f}", "max s": f"{line.high:.3f}"}
    found |= {"imbal": f"{line.imbalance:.2f}", "share": f"{line.share:.1f} %"}
    return found | ({"messages": str(line.messages), "bytes": size_text(line.bytes)} if line.messages else {})
