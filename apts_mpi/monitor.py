"""What a person sees of a run: one line per outer iteration, live on a terminal or plain in a log.

Only rank 0 has a monitor that writes; give the others kind ``none``. ``extra`` of ``step``
holds what the solver does not know, each key optional: ``epoch`` (passes over the data so far,
a fraction), ``time`` and ``eta`` (s), ``passes`` (gradient evaluations so far in passes over the
training set), ``reductions_total`` (n-vectors so far), ``accuracy`` (test set, per cent; None: not evaluated).
"""

from __future__ import annotations

import math
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from time import monotonic
from types import TracebackType
from typing import IO, TYPE_CHECKING, Literal, Protocol, Self

from apts_mpi.contracts import StepInfo
from apts_mpi.timing import RegionTime, render

if TYPE_CHECKING:
    from rich.console import Group
    from rich.progress import Progress
    from rich.text import Text

Kind = Literal["auto", "live", "plain", "none"]
Extra = Mapping[str, float | None]

LEGEND = (
    "epoch  passes of the data order so far        k      outer iteration",
    "loss   training loss before the step          |g|    norm of its gradient",
    "rho    actual / predicted decrease            radius bound on the length of the step",
    "acc    accepted (y, n): step of the subdomains / global step",
    "local  local iterations of all subdomains     evals  gradient evaluations so far, in training sets",
    "reds   sums of a whole vector over the ranks  test%  test accuracy     time, eta  spent, left",
)
HEADER_EVERY = 25  # plain lines
LAST_LINES = 12  # live
REDRAW = 0.1  # s between two redrawings of the live view


def duration(seconds: float | None) -> str:
    """Seconds for people, at most 6 wide: '12.3s', '12:34', '3h05m', '4d03h'; '-' when unknown."""
    if seconds is None or not math.isfinite(seconds) or seconds < 0:
        return "-"
    if seconds < 99.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d}"
    if whole < 360_000:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    days = whole // 86_400
    return f"{days}d{whole % 86_400 // 3600:02d}h" if days < 100 else ">99d"


def _ratio(value: float) -> str:
    if math.isfinite(value) and abs(value) >= 1000:
        return ">999" if value > 0 else "<-999"
    return "-" if math.isnan(value) else f"{value:.2f}"


def _verdict(info: StepInfo) -> str:
    second = "" if math.isnan(info.global_rho) else "/y" if info.global_accepted else "/n"
    return ("y" if info.accepted else "n") + second


Cell = Callable[[StepInfo, Extra], str]
COLUMNS: tuple[tuple[str, int, Cell], ...] = (  # name, width, text; 90 wide with the blanks between
    ("epoch", 5, lambda info, extra: f"{_number(extra, 'epoch', info.epoch):.1f}"),
    ("k", 5, lambda info, extra: str(info.k)),
    ("loss", 9, lambda info, extra: f"{info.loss:#.4g}"),
    ("|g|", 8, lambda info, extra: f"{info.grad_norm:#.3g}"),
    ("rho", 6, lambda info, extra: _ratio(info.rho)),
    ("radius", 8, lambda info, extra: f"{info.radius:#.3g}"),
    ("acc", 3, lambda info, extra: _verdict(info)),
    ("local", 5, lambda info, extra: str(info.local_iters)),
    ("evals", 6, lambda info, extra: f"{_number(extra, 'passes'):.1f}"),
    ("reds", 5, lambda info, extra: f"{_number(extra, 'reductions_total'):.0f}"),
    ("test%", 6, lambda info, extra: "" if extra.get("accuracy") is None else f"{_number(extra, 'accuracy'):.2f}"),
    ("time", 6, lambda info, extra: duration(extra.get("time"))),
    ("eta", 6, lambda info, extra: duration(extra.get("eta"))),
)
NARROW = ("local", "reds")  # what a terminal below 91 columns does without


def _number(extra: Extra, key: str, missing: float = math.nan) -> float:
    value = extra.get(key)
    return missing if value is None else value


def heading(without: Sequence[str] = ()) -> str:
    """The names of the columns, aligned with ``line``."""
    return " ".join(name.rjust(width) for name, width, _ in COLUMNS if name not in without)


def line(info: StepInfo, extra: Extra, without: Sequence[str] = ()) -> str:
    """One outer iteration as text."""
    return " ".join(cell(info, extra).rjust(width) for name, width, cell in COLUMNS if name not in without)


def facts(header: Mapping[str, object]) -> list[str]:
    """Facts as aligned lines, 'data     digits, 1,437 samples'."""
    width = max(map(len, header), default=0)
    return [f"{name:<{width}}  {value}" for name, value in header.items()]


class _View(Protocol):
    """How lines reach the eye."""

    def text(self, lines: Sequence[str]) -> None:
        """Lines that stay."""

    def step(self, info: StepInfo, extra: Extra) -> None:
        """One outer iteration."""

    def close(self) -> None:
        """Leave the terminal as it was found."""


class _None:
    """Says nothing."""

    def text(self, lines: Sequence[str]) -> None: ...

    def step(self, info: StepInfo, extra: Extra) -> None: ...

    def close(self) -> None: ...


class _Plain:
    """Timestamped lines without colour, flushed one by one."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream, self._steps = stream, 0

    def text(self, lines: Sequence[str]) -> None:
        self._write(lines, stamped=False)

    def step(self, info: StepInfo, extra: Extra) -> None:
        if self._steps % HEADER_EVERY == 0:
            self._write([f"{'clock':<8} {heading()}"], stamped=False)
        self._steps += 1
        self._write([line(info, extra)], stamped=True)

    def close(self) -> None:
        self._stream.flush()

    def _write(self, lines: Sequence[str], stamped: bool) -> None:
        stamp = f"{datetime.now():%H:%M:%S} " if stamped else ""
        self._stream.write("".join(f"{stamp}{text}\n" for text in lines))
        self._stream.flush()


class _Live:
    """A table of the last lines above a progress bar; drawn by the caller's thread, at most ten times a second."""

    def __init__(self, stream: IO[str], total: int) -> None:
        from rich.console import Console
        from rich.live import Live
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self._console = Console(file=stream, highlight=False)
        self._without = NARROW if self._console.width < 91 else ()
        self._lines: deque[Text] = deque(maxlen=LAST_LINES)
        columns = TextColumn("outer iteration"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.description}")
        self._progress: Progress = Progress(*columns, console=self._console)
        self._task = self._progress.add_task("", total=total or None)
        self._live = Live(console=self._console, auto_refresh=False, get_renderable=self._frame)
        self._drawn, self._accuracy = -math.inf, math.nan

    def text(self, lines: Sequence[str]) -> None:
        for text in lines:
            self._console.print(text, markup=False, soft_wrap=True)

    def step(self, info: StepInfo, extra: Extra) -> None:
        self._lines.append(self._coloured(info, extra))
        self._accuracy = _number(extra, "accuracy", self._accuracy)
        test = "" if math.isnan(self._accuracy) else f"  test {self._accuracy:.2f} %"
        self._progress.update(self._task, completed=info.k + 1, description=f"{duration(extra.get('eta'))} left{test}")
        self._live.start()
        if monotonic() - self._drawn >= REDRAW:
            self._live.refresh()
            self._drawn = monotonic()

    def close(self) -> None:
        if self._live.is_started:
            self._live.refresh()
            self._live.stop()

    def _frame(self) -> Group:
        from rich.console import Group
        from rich.text import Text

        return Group(Text(heading(self._without), style="bold", no_wrap=True), *self._lines, self._progress)

    def _coloured(self, info: StepInfo, extra: Extra) -> Text:
        from rich.text import Text

        text = Text(line(info, extra, self._without), no_wrap=True)
        start = sum(width + 1 for name, width, _ in COLUMNS[:6])  # the column acc
        text.stylize("green" if info.accepted else "red", start, start + 3)
        if not info.accepted:
            text.stylize("dim")
        return text


class Monitor:
    """Shows a run on ``stream`` (default: standard output).

    ``auto`` is live on a terminal and plain elsewhere. ``total`` is the number of outer iterations, 0 if unknown.
    Use it in a ``with`` or call ``close``, so that a failed run leaves the terminal in order.
    """

    def __init__(self, kind: Kind = "auto", total: int = 0, title: str = "", stream: IO[str] | None = None) -> None:
        out = sys.stdout if stream is None else stream
        chosen = ("live" if out.isatty() else "plain") if kind == "auto" else kind
        self._title, self._reductions = title, 0
        self._view: _View = _None() if chosen == "none" else _Live(out, total) if chosen == "live" else _Plain(out)

    def start(self, header: Mapping[str, object]) -> None:
        """The title, facts about the run (data, model, n, N, P, device, preset ...) and a legend for newcomers."""
        self._view.text([*filter(None, [self._title]), *facts(header), "", *LEGEND, ""])

    def step(self, info: StepInfo, extra: Extra) -> None:
        """The line of one outer iteration."""
        self._reductions += info.reductions
        self._view.step(info, {"reductions_total": self._reductions, **extra})

    def note(self, text: str) -> None:
        """A line of its own, such as a warning."""
        self._view.text([f"note: {text}"])

    def finish(self, times: Sequence[RegionTime], result: Mapping[str, object] | None = None) -> None:
        """The phase table and the facts of the result, then ``close``."""
        self.close()
        self._view.text(["", *render(times), "", *facts(result or {})])

    def close(self) -> None:
        """End the live view; harmless when called twice."""
        self._view.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
