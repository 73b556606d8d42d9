"""Three ways to show a run: not at all, as lines of a log, as a live view on a terminal."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from time import monotonic
from typing import IO, TYPE_CHECKING, Protocol

from apts_mpi.contracts import StepInfo
from apts_mpi.monitor.lines import Extra, duration, heading, line, number, spare

if TYPE_CHECKING:
    from rich.console import Group
    from rich.progress import Progress
    from rich.text import Text

HEADER_EVERY = 25  # plain lines
PLENTY = 200  # plain lines; beyond them a run of many short iterations does not write each
PAUSE = 1.0  # s between two of the lines beyond them
LAST_LINES = 12  # live
REDRAW = 0.1  # s between two redrawings of the live view


class View(Protocol):
    """How lines reach the eye."""

    width: int | None  # of the place where lines stand; None: as wide as they like

    def text(self, lines: Sequence[str]) -> None:
        """Lines that stay."""

    def note(self, text: str) -> None:
        """A line of its own between the steps."""

    def step(self, info: StepInfo, extra: Extra) -> None:
        """One outer iteration."""

    def close(self) -> None:
        """Leave the terminal as it was found."""


class Nothing:
    """Says nothing."""

    width: int | None = None

    def text(self, lines: Sequence[str]) -> None: ...

    def note(self, text: str) -> None: ...

    def step(self, info: StepInfo, extra: Extra) -> None: ...

    def close(self) -> None: ...


class Plain:
    """Timestamped lines without colour, flushed one by one; beyond ``PLENTY`` at most one in ``PAUSE`` seconds.

    Exempt from that are a test accuracy, unless every iteration has one, and the last line before ``close``.
    """

    width: int | None = None

    def __init__(self, stream: IO[str], without: Sequence[str] = ()) -> None:
        """``without``: columns that are left out."""
        self._stream, self._without, self._shown = stream, without, 0
        self._last, self._left_out, self._tested, self._told = -math.inf, "", False, False

    def text(self, lines: Sequence[str]) -> None:
        self._write(lines, stamped=False)

    def note(self, text: str) -> None:
        self._write([f"note: {text}"], stamped=True)

    def step(self, info: StepInfo, extra: Extra) -> None:
        text, tested = line(info, extra, self._without), math.isfinite(number(extra, "accuracy"))
        rare, self._tested = tested and not self._tested, tested
        if self._shown < PLENTY or rare or monotonic() - self._last >= PAUSE:
            self._show(text)
            return
        if not self._told:
            self.note(f"from here on at most one line in {PAUSE:g} s, beside test accuracies and the last iteration; the records have all")
        self._told, self._left_out = True, text

    def close(self) -> None:
        if self._left_out:
            self._show(self._left_out)
        self._write([], stamped=False)

    def _show(self, text: str) -> None:
        if self._shown % HEADER_EVERY == 0:
            self._write([f"{'clock':<8} {heading(self._without)}"], stamped=False)
        self._shown += 1
        self._write([text], stamped=True)
        self._last, self._left_out = monotonic(), ""

    def _write(self, lines: Sequence[str], stamped: bool) -> None:
        stamp = f"{datetime.now():%H:%M:%S} " if stamped else ""
        try:
            self._stream.write("".join(f"{stamp}{text}\n" for text in lines))
            self._stream.flush()
        except BrokenPipeError:  # whoever read has gone; the run goes on
            with suppress(OSError, ValueError), open(os.devnull, "wb") as void:
                os.dup2(void.fileno(), self._stream.fileno())


class Live:
    """A table of the last lines above a progress bar; drawn by the caller's thread, at most ten times a second.

    Of lines that leave the table those of round numbers, k = 0, 1, .. 9, 10, 20, .. 90, 100, 200, stay above it, to be read afterwards.
    """

    def __init__(self, stream: IO[str], total: int, width: int | None, without: Sequence[str] = ()) -> None:
        """``width``: columns of the terminal; None: as rich finds it. ``without``: columns of the table that are left out."""
        from rich.console import Console
        from rich.live import Live as RichLive
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self._console = Console(file=stream, highlight=False, force_terminal=True, width=width)
        self.width: int | None = self._console.width
        self._without = (*without, *spare(self.width, without))
        self._lines: deque[tuple[int, Text]] = deque()
        self._left = 0  # lines above the table
        columns = TextColumn("outer iteration"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.description}")
        self._progress: Progress = Progress(*columns, console=self._console)
        self._task = self._progress.add_task("", total=total or None)
        self._live = RichLive(console=self._console, auto_refresh=False, get_renderable=self._frame)
        self._drawn, self._accuracy = -math.inf, math.nan

    def text(self, lines: Sequence[str]) -> None:
        for text in lines:
            self._console.print(text, markup=False, soft_wrap=True)

    def note(self, text: str) -> None:
        self._console.print(f"note: {text}", style="yellow", markup=False, soft_wrap=True)

    def step(self, info: StepInfo, extra: Extra) -> None:
        self._lines.append((info.k, self._coloured(info, extra)))
        if len(self._lines) > LAST_LINES:
            self._leave(*self._lines.popleft())
        self._accuracy = number(extra, "accuracy", self._accuracy)
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

        return Group(Text(heading(self._without), style="bold", no_wrap=True), *(text for _, text in self._lines), self._progress)

    def _leave(self, k: int, text: Text) -> None:
        """Line k leaves the table, and stays above it if its number is round."""
        if k % 10 ** (len(str(k)) - 1):
            return
        if not self._left:
            self._console.print(heading(self._without), style="bold", markup=False, soft_wrap=True)
        self._left += 1
        self._console.print(text, soft_wrap=True)

    def _coloured(self, info: StepInfo, extra: Extra) -> Text:
        from rich.text import Text

        text = Text(line(info, extra, self._without), no_wrap=True)
        if (start := heading(self._without).find("acc")) >= 0:
            text.stylize("green" if info.accepted else "red", start, start + 3)
        if not info.accepted:
            text.stylize("dim")
        return text
