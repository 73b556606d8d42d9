"""Requests to stop early and go on later: signals to this process, and the end of the batch job it runs in."""

from __future__ import annotations

import atexit
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any, Self

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
END = "SLURM_JOB_END_TIME"  # seconds since 1970
MARGIN = 15.0  # s kept free before the end of the job, for what the estimate of the caller does not know
LONGEST = 10 * 365 * 86400.0  # s; no job lasts longer
INTERRUPTED = 130  # exit code of a program that Ctrl-C ended: 128 + SIGINT


def deadline(environ: Mapping[str, str]) -> tuple[float, str]:
    """When the job ends by ``time.monotonic``, inf if nobody says so; and why the variable was passed over, empty if it was not."""
    text = environ.get(END, "")
    if not text:
        return math.inf, ""
    left = int(text) - time.time() if text.isascii() and text.isdigit() and len(text) <= 18 else math.nan
    if 0 < left <= LONGEST:
        return time.monotonic() + left, ""
    why = "is no time" if math.isnan(left) else "is past" if left <= 0 else "is more than ten years away"
    return math.inf, f"{END}={text[:40]} {why}: the end of the job is not known"


@contextmanager
def deferred() -> Iterator[Callable[[], None]]:
    """Keep a Ctrl-C until the block ends, or until it calls what it is given, if that is earlier: KeyboardInterrupt then.

    Nothing is kept outside the main thread, and where Ctrl-C is ignored or somebody else's already.
    """
    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    kept: list[int] = []

    def keep(number: int, frame: FrameType | None) -> None:
        kept.append(number)

    def hear() -> None:
        if signal.getsignal(signal.SIGINT) is keep:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if kept:
            kept.clear()
            raise KeyboardInterrupt

    if ours:
        signal.signal(signal.SIGINT, keep)
    failed = True
    try:
        yield hear
        failed = False
    finally:
        if failed:
            kept.clear()
        hear()


@contextmanager
def held() -> Iterator[None]:
    """For a program that ends with the block: keep SIGUSR1 for the Interrupt that is entered later, and no signal for its own end.

    Else Slurm's warning ends ranks that are still loading, and a second signal those that have saved and are leaving: both would
    spoil the exit code. From here on SIGUSR1, and after an early end SIGTERM, do nothing. Main thread only.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    earlier = signal.signal(signal.SIGUSR1, _keep)
    atexit.register(_ignore)
    try:
        yield
    finally:
        _early.clear()
        signal.signal(signal.SIGUSR1, _pass if earlier in (None, signal.SIG_DFL) else earlier)


class Interrupt:
    """While entered, SIGTERM, SIGINT and SIGUSR1 wish for an end instead of bringing it; a second SIGINT calls ``now`` at once.

    Nothing here is collective: a rank tells the others by Flag.INTERRUPT. Outside the main thread Python allows no handlers, so there
    only the end of the job is seen. At exit the earlier handlers are back; one that C code had installed becomes the default action.

    Args:
        now: ends the run without waiting; called inside the handler, in the main thread.
        environ: where ``END`` may say when the job ends. It is read once, here: a clock that is set later changes nothing.
    """

    def __init__(self, now: Callable[[], object], environ: Mapping[str, str] = os.environ) -> None:
        self.reason = ""  # why the run should end early, for people; the first reason stays
        self.leaving = False  # all ranks have agreed to end early, whoever had the reason
        self._now, self._times = now, 0  # SIGINTs so far
        self._earlier: dict[signal.Signals, Any] = {}
        self._end, self.note = deadline(environ)

    def __enter__(self) -> Self:
        assert not self._earlier, "entered twice"
        if threading.current_thread() is threading.main_thread():
            self._earlier = {number: signal.signal(number, self._hear) for number in SIGNALS}
            while _early:
                self._hear(_early.pop(), None)
        return self

    def __exit__(self, *error: object) -> None:
        leaving = (self.leaving or bool(self.reason)) and self._earlier.get(signal.SIGUSR1) is _keep  # see ``held``
        while self._earlier:
            number, earlier = self._earlier.popitem()
            quiet = leaving and number is signal.SIGTERM
            signal.signal(number, _pass if quiet else signal.SIG_DFL if earlier is None else earlier)

    @property
    def left(self) -> float:
        """Seconds until the job ends; inf where that is not known."""
        return self._end - time.monotonic()

    def wanted(self, needed: float = 0.0) -> str:
        """The reason to end now, empty to go on; ``needed``: seconds that one more iteration and saving after it will take."""
        if not self.reason and self.left < needed + MARGIN:
            self.reason = f"the job ends in {max(self.left, 0):.0f} s"
        return self.reason

    def _hear(self, number: int, frame: FrameType | None) -> None:
        """The handler: it runs between any two bytecodes of the main thread, so it takes no lock and writes nothing."""
        self.reason = self.reason or signal.Signals(number).name
        self._times += number == signal.SIGINT
        if self._times == 2 and number == signal.SIGINT:
            self._now()


_early: list[int] = []  # what ``held`` has kept


def _keep(number: int, frame: FrameType | None) -> None:
    _early.append(number)


def _pass(number: int, frame: FrameType | None) -> None:
    """Hear it and go on. Unlike SIG_IGN this is not handed on to programs that this one starts."""


def _ignore() -> None:
    """At exit: Python takes its handlers away before the libraries have cleared up, which would make signals deadly again."""
    for number in (signal.SIGTERM, signal.SIGUSR1):
        if signal.getsignal(number) is _pass:
            signal.signal(number, signal.SIG_IGN)
