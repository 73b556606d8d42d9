"""When a checkpoint is due, what goes into it, and how little the ranks wait for it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from apts_mpi.contracts import Communicator, State
from apts_mpi.safety import CheckpointConfig, every
from apts_mpi.storage import checkpoint as files
from apts_mpi.storage.background import Background, Written

FIRST = 10.0  # s of the run after which ``auto`` writes its first checkpoint, which tells what one costs
RETRY = 60.0  # s, at most, from a failed write to the next try


def best_interval(cost: float, failures: float) -> float:
    """Seconds between two checkpoints that lose least time, Daly's higher-order form of Young's sqrt(2 C M) (Daly 2006, eq. 37).

    ``cost``: seconds that a checkpoint takes from the run, C; ``failures``: mean seconds between two failures, M.
    """
    if cost >= 2 * failures:
        return failures
    ratio = cost / (2 * failures)
    return math.sqrt(2 * cost * failures) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - cost


class Checkpoints:
    """The checkpoints of one run; every rank has one, rank 0's writes.

    Args:
        folder: of the checkpoints, rank 0's; None: nothing is ever written.
        warn: is told once when the disk fails, and again when it has recovered and fails anew.
    """

    def __init__(
        self, config: CheckpointConfig, comm: Communicator, folder: Path | None, warn: Callable[[str], None]
    ) -> None:
        self._config, self._comm, self._folder, self._warn = config, comm, folder, warn
        self._every, self._sequence = every(config.every), files.highest(folder) if folder else 0  # the next one is higher
        self._background = Background()
        self._buffers: dict[str, Tensor] = {}
        self._last_done, self._began = 0, time.monotonic()
        self._interval = FIRST if self._every.auto else self._every.seconds
        self._failed, self._error = False, ""
        self.written = self.nbytes = 0  # checkpoints of this start that are safe, bytes of the last one
        self.seconds = 0.0  # that the last write took
        self.pause = 0.0  # s, the longest time for which rank 0 stopped to copy

    @property
    def on(self) -> bool:
        """Whether checkpoints are wanted at all; the same on all ranks."""
        return self._config.every != "off"

    def begin(self, done: int) -> None:
        """The run goes on after ``done`` iterations: from here on count."""
        self._last_done, self._began = done, time.monotonic()

    def due(self, done: int) -> bool:
        """Whether rank 0 wants a checkpoint after ``done`` iterations; not collective, False on the others."""
        if self._folder is None or not self.on:
            return False
        self._look()
        if self._background.busy:
            return False
        if self._every.iterations and not self._failed:
            return done - self._last_done >= self._every.iterations
        return time.monotonic() - self._began >= (self._retry if self._failed else self._interval)

    @property
    def _retry(self) -> float:
        """Seconds from a failed write to the next try."""
        return RETRY if self._every.iterations else min(self._interval, RETRY)

    def save(
        self, facts: Mapping[str, Any], theta: Tensor, state: State, records: Callable[[], bytes], wait: bool = False
    ) -> str:
        """Keep the run as it is between two iterations; every rank calls.

        Rank 0 copies, and writes in a thread; with ``wait`` all wait until it is on the disk. Returns, on every rank, why it could
        not be written: empty if it was, or if nobody waited.
        """
        own = self._gather_own(state.own)
        began = time.monotonic()
        if self._folder is not None:
            try:
                self._start(facts, theta, state.shared, own, records, began)
            except MemoryError as error:
                self._judge(Written(0.0, error=str(error) or type(error).__name__))
        if not wait:
            return ""
        self._background.wait()
        self._look()
        return self._comm.share(self._error if self._folder is not None else "")

    def finish(self) -> None:
        """Wait for what is being written; not collective."""
        self._background.wait()
        self._look()

    def told(self) -> str:
        """What was kept in this start, for people."""
        if not self.written:
            return ""
        stopped = f"training stopped {1e3 * self.pause:.3g} ms at most for each"
        return f"{self.written} of {self.nbytes / 1e6:.3g} MB, written beside the training; {stopped}"

    def _start(
        self, facts: Mapping[str, Any], theta: Tensor, shared: Mapping[str, Tensor], own: list[dict[str, NDArray[Any]]],
        records: Callable[[], bytes], began: float,
    ) -> None:  # fmt: skip
        """Copy, and let the thread write."""
        self._background.wait()  # the buffers are in use until then
        self._look()
        folder = self._folder
        assert folder is not None
        self._sequence += 1
        copies = {name: self._copy(name, value) for name, value in shared.items()}
        point, told = self._copy("theta", theta), dict(facts)
        sequence, keep = self._sequence, self._config.keep
        self.pause = max(self.pause, time.monotonic() - began)
        self._last_done, self._began = int(facts["iteration"]), time.monotonic()
        self._background.start(lambda: files.write(folder, files.Checkpoint(sequence, told, point, copies, own, records()), keep))

    def _copy(self, name: str, value: Tensor) -> NDArray[Any]:
        """``value`` in host memory that the next checkpoint uses again: pages touched for the first time cost more than the copy."""
        buffer = self._buffers.get(name)
        if buffer is None or buffer.shape != value.shape or buffer.dtype != value.dtype:
            buffer = self._buffers[name] = torch.empty(value.shape, dtype=value.dtype)
        buffer.copy_(value)
        found: NDArray[Any] = buffer.numpy()
        return found

    def _look(self) -> None:
        """What became of the last write."""
        written = self._background.collect()
        if written is not None:
            self._judge(written)

    def _judge(self, written: Written) -> None:
        """Keep what a write told; a disk that fails is told once."""
        self._error = written.error
        if written.error:
            if not self._failed:
                self._warn(f"no checkpoint: {written.error}; earlier ones are untouched, the run goes on and will try again")
        else:
            self.written, self.nbytes, self.seconds = self.written + 1, written.nbytes, written.seconds
            if self._every.auto:
                self._interval = best_interval(self._cost(written), 3600 * self._config.mtbf)
        self._failed = bool(written.error)

    def _cost(self, written: Written) -> float:
        """What a checkpoint takes from the run: the copy, and the thread's time, as if it had no core of its own."""
        return self.pause + written.seconds

    def _gather_own(self, own: Sequence[Mapping[str, Tensor]]) -> list[dict[str, NDArray[Any]]]:
        """What each subdomain of all ranks keeps, on rank 0, in the order of their numbers; every rank calls."""
        arrays = [{name: value.detach().reshape(-1).cpu().numpy() for name, value in each.items()} for each in own]
        lines = (" ".join(f"{name}:{array.dtype}:{array.nbytes}" for name, array in each.items()) for each in arrays)
        names = self._comm.gather_text("".join(f"{line}\n" for line in lines))
        values = [array.view(np.uint8) for each in arrays for array in each.values()]
        rows = self._comm.collect(np.concatenate(values) if values else np.empty(0, np.uint8))
        return [] if rows is None else [each for text, row in zip(names, rows, strict=True) for each in _parted(text, row)]


def _parted(text: str, row: NDArray[np.uint8]) -> list[dict[str, NDArray[Any]]]:
    """One dict per line of ``text``, filled from the bytes in ``row`` one after the other."""
    found: list[dict[str, NDArray[Any]]] = []
    for line in text.splitlines():
        found.append({})
        for word in line.split():
            name, kind, size = word.split(":")
            found[-1][name], row = row[: int(size)].view(kind), row[int(size) :]
    return found
