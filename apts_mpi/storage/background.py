"""One piece of writing at a time, beside the training."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Written:
    """How a piece of writing went."""

    seconds: float  # wall time in the thread
    nbytes: int = 0
    error: str = ""  # of the disk or the memory; empty: it is safe


class Background:
    """A thread for each piece of writing; it is joined when the process ends, so nothing is cut off by leaving."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._written: Written | None = None

    @property
    def busy(self) -> bool:
        """Whether a piece is being written."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, write: Callable[[], int]) -> None:
        """Run ``write``, which returns bytes, in a thread; not while ``busy``."""
        assert not self.busy, "one piece at a time"
        self._thread = threading.Thread(target=self._run, args=(write,), name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Until nothing is being written."""
        if self._thread is not None:
            self._thread.join()

    def collect(self) -> Written | None:
        """How the last piece went, once; None while it is under way, and if there is none."""
        if self._thread is None or self.busy:
            return None
        self._thread.join()
        self._thread, written = None, self._written
        return written

    def _run(self, write: Callable[[], int]) -> None:
        began = time.monotonic()
        self._written = Written(0.0, error="the writing thread broke off")  # by a bug, which the thread hook tells
        try:
            nbytes = write()
        except (OSError, MemoryError) as error:
            self._written = Written(time.monotonic() - began, error=str(error) or type(error).__name__)
        else:
            self._written = Written(time.monotonic() - began, nbytes)
