"""What a person sees of a run: one line per outer iteration, live on a terminal or plain in a log.

Only rank 0 has a monitor that writes; give the others kind ``none``. ``extra`` of ``step``
holds what the solver does not know, each key optional: ``epoch`` (passes over the data so far,
a fraction), ``time`` and ``eta`` (s), ``passes`` (gradient evaluations so far in passes over the
training set), ``reductions_total`` (n-vectors so far), ``accuracy`` (test set, per cent; None: not evaluated).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import IO, Literal, Self

from apts_mpi.contracts import StepInfo
from apts_mpi.monitor.lines import Extra, facts, legend
from apts_mpi.monitor.terminal import find_screen
from apts_mpi.monitor.views import Live, Nothing, Plain, View
from apts_mpi.timing import RegionTime, render

Kind = Literal["auto", "live", "plain", "none"]


class Monitor:
    """Shows a run on ``stream`` (default: standard output).

    ``auto`` is live where a person watches a terminal, through mpiexec too, and plain elsewhere. ``total``
    is the number of outer iterations, 0 if unknown; ``without``: columns that mean nothing for this run and are left out.
    Use it in a ``with`` or call ``close``, so that a failed run leaves the terminal in order.
    """

    def __init__(
        self, kind: Kind = "auto", total: int = 0, title: str = "", stream: IO[str] | None = None, without: Sequence[str] = ()
    ) -> None:
        out = sys.stdout if stream is None else stream
        screen = find_screen(out) if kind in ("auto", "live") else None
        self._title, self._reductions, self._without = title, 0, without
        self._view: View
        if kind == "live" or (kind == "auto" and screen is not None):
            self._view = Live(out, total, screen.columns if screen else None, self._without)
        else:
            self._view = Nothing() if kind == "none" else Plain(out, self._without)

    def start(self, header: Mapping[str, object], averaged: bool = False) -> None:
        """The title, facts about the run (data, model, n, N, P, device, preset ...) and a legend; ``averaged``: see there."""
        words = legend(self._view.width, self._without, averaged)
        self._view.text([*filter(None, [self._title]), *facts(header, self._view.width), "", *words, ""])

    def step(self, info: StepInfo, extra: Extra) -> None:
        """The line of one outer iteration."""
        self._reductions += info.reductions
        self._view.step(info, {"reductions_total": self._reductions, **extra})

    def say(self, text: str) -> None:
        """A line that is no warning."""
        self._view.text([text])

    def note(self, text: str) -> None:
        """A line of its own, such as a warning."""
        self._view.note(text)

    def finish(self, times: Sequence[RegionTime], result: Mapping[str, object] | None = None) -> None:
        """The phase table and the facts of the result, then ``close``."""
        self.close()
        self._view.text(["", *render(times, self._view.width), "", *facts(result or {}, self._view.width)])

    def close(self) -> None:
        """End the live view; harmless when called twice."""
        self._view.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
