"""A scratch copy of the source with random access, so that a shuffle needs memory for one batch alone."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from apts_mpi.storage.files import DataError, read_json, sync, write_json
from apts_mpi.storage.manifest import Layout, Statistics
from apts_mpi.storage.order import Indices
from apts_mpi.storage.sources import Batch, Source, batch_size

Progress = Callable[[str, int, int], None]  # what is done, how much, of how much
CODES = {"train": 0, "test": 1, "all": 2}


class Spool:
    """inputs.raw and targets.raw in source order in a folder; spool.json is written when both are whole."""

    def __init__(self, folder: Path, layout: Layout, plan: str) -> None:
        self.folder, self.layout, self.plan = folder, layout, plan
        self._mark = folder / "spool.json"

    @property
    def whole(self) -> bool:
        """Whether an earlier run finished it for the same plan."""
        return self._mark.is_file() and read_json(self._mark).get("plan") == self.plan

    def fill(self, source: Source, progress: Progress) -> None:
        """Copy the whole source, checking every value; DataError names the sample."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        runs: list[tuple[str, int]] = []
        done, total = 0, sum(source.counts.values())
        with (self.folder / "inputs.raw").open("wb") as inputs, (self.folder / "targets.raw").open("wb") as targets:
            for batch in source.stream():
                _append(inputs, checked_inputs(batch.inputs, self.layout, done))
                _append(targets, checked_targets(batch.targets, self.layout, done))
                runs.append((batch.split, len(batch.inputs)))
                done += len(batch.inputs)
                progress("reading", done, total)
        found = {split: sum(count for name, count in runs if name == split) for split in source.counts}
        if found != source.counts or done != total:
            raise DataError(f"{source.name}: holds {found} samples, {source.counts} were announced; did it change meanwhile?")
        for name in ("inputs.raw", "targets.raw"):
            sync(self.folder / name)
        write_json(self._mark, {"plan": self.plan, "runs": runs})

    def open(self) -> None:
        """Map both files; a run of batches becomes one split code a sample."""
        runs = read_json(self._mark)["runs"]
        self.splits = np.concatenate([np.full(count, CODES[split], np.uint8) for split, count in runs])
        count = len(self.splits)
        self.inputs: NDArray[Any] = np.memmap(
            self.folder / "inputs.raw", self.layout.input_dtype, "r", shape=(count, *self.layout.sample_shape)
        )
        self.targets: NDArray[Any] = np.memmap(
            self.folder / "targets.raw", self.layout.target_dtype, "r", shape=(count, *self.layout.target_shape)
        )

    def batches(self, order: Indices, size: int) -> Iterator[Batch]:
        """The samples at the given positions, ``size`` at a time."""
        for start in range(0, len(order), size):
            part = order[start : start + size]
            yield Batch("", self.inputs[part], self.targets[part])

    def statistics(self, order: Indices) -> Statistics:
        """Mean and std of the scaled inputs at the given positions; tokens are left as they are (0 and 1)."""
        if self.layout.target_shape == self.layout.sample_shape and self.layout.classes:
            return neutral(self.layout)
        count, mean, spread = 0, np.zeros(self.layout.channels), np.zeros(self.layout.channels)
        for batch in self.batches(np.sort(order), batch_size(8 * self.layout.sample_bytes)):
            values = batch.inputs.reshape(len(batch.inputs), self.layout.channels, -1) / self.layout.scale
            size = values.shape[0] * values.shape[2]
            part_mean = values.mean(axis=(0, 2), dtype=np.float64)
            part_spread = np.square(values - part_mean[:, np.newaxis]).sum(axis=(0, 2), dtype=np.float64)
            # Chan, Golub, LeVeque 1983: join mean and sum of squares of two sets of samples.
            shift = part_mean - mean
            spread += part_spread + shift**2 * count * size / (count + size)
            mean += shift * size / (count + size)
            count += size
        overall = _std(spread.mean() / count + mean.var(), mean.mean())
        return Statistics(float(mean.mean()), overall, tuple(mean.tolist()), tuple(map(_std, spread / count, mean)))


def neutral(layout: Layout) -> Statistics:
    """Statistics by which any normalisation leaves inputs as they are."""
    return Statistics(0.0, 1.0, (0.0,) * layout.channels, (1.0,) * layout.channels)


def _std(variance: Any, mean: Any) -> float:
    """The root, or 1 where it is nothing but rounding: a constant is only shifted."""
    std = float(np.sqrt(variance))
    return std if std > 1e-7 * abs(mean) else 1.0


def _append(handle: IO[bytes], values: NDArray[Any]) -> None:
    handle.write(np.ascontiguousarray(values).data)


def checked_inputs(values: NDArray[Any], layout: Layout, start: int) -> NDArray[Any]:
    """Inputs in the stored type; DataError names the first sample with a wrong shape or a value that is not finite."""
    if values.shape[1:] != layout.sample_shape:
        raise DataError(f"samples from {start} on have the shape {values.shape[1:]}, expected {layout.sample_shape}")
    with np.errstate(over="ignore"):  # what overflows is found below, with its index
        stored = values.astype(layout.input_dtype, copy=False)
    if stored.dtype.kind == "f" and not np.isfinite(stored).all():
        bad = start + int(np.flatnonzero(~np.isfinite(stored).reshape(len(stored), -1).all(axis=1))[0])
        raise DataError(f"sample {bad} has inputs that are nan, infinite or beyond {stored.dtype}; remove or repair it")
    return stored


def checked_targets(values: NDArray[Any], layout: Layout, start: int) -> NDArray[Any]:
    """Targets in the stored type; DataError names the first that is negative, fractional, not finite or too large."""
    if values.shape[1:] != layout.target_shape:
        raise DataError(f"targets from {start} on have the shape {values.shape[1:]}, expected {layout.target_shape}")
    with np.errstate(over="ignore", invalid="ignore"):
        stored = values.astype(layout.target_dtype, copy=False)
        good = (stored == values) & (values >= 0) & (values < layout.classes) if layout.classes else np.isfinite(stored)
    if not good.all():
        bad = int(np.flatnonzero(~good.reshape(len(good), -1).all(axis=1))[0])
        wanted = f"an integer in [0, {layout.classes})" if layout.classes else "finite"
        raise DataError(f"target of sample {start + bad} must be {wanted}, got {values[bad].tolist()}")
    return stored
