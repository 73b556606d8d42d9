"""The samples of one rank in stored form (uint8 images stay uint8), resident on its device or, beyond its memory, on the host."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from apts_mpi.problem.staging import Staging, fits

Rows = np.ndarray[tuple[int], np.dtype[np.int64]]


class Samples:
    """Inputs and targets of some index ranges of the training set, one after the other.

    ``inputs``: (rows, *sample_shape), any real dtype; ``targets``: (rows, ...). ``ranges`` say which
    samples of the training set the rows are. What the model sees is inputs * scale + shift in ``dtype``;
    ``tokens`` are handed to it as integers. ``place`` and ``sharers``: see ``staging.fits``.
    """

    def __init__(
        self, ranges: Sequence[range], inputs: Tensor, targets: Tensor, *, dtype: torch.dtype, device: torch.device,
        scale: Tensor | None = None, shift: Tensor | None = None, tokens: bool = False, place: str = "auto",
        sharers: int = 1,
    ) -> None:  # fmt: skip
        if sum(map(len, ranges)) != len(inputs) or len(inputs) != len(targets):
            raise ValueError(f"{len(inputs)} inputs and {len(targets)} targets do not fill the ranges {ranges}")
        self.ranges = list(ranges)
        if targets.dtype.is_floating_point:
            targets = targets.to(dtype)
        resident = fits(inputs.nbytes + targets.nbytes, place, device, sharers)
        self.home = device if resident else torch.device("cpu")
        self.inputs, self.targets = inputs.to(self.home), targets.to(self.home)
        self._sent = None if resident else (Staging(self.inputs, device), Staging(self.targets, device))
        self.dtype, self.device, self.tokens = dtype, device, tokens
        self.scale = None if scale is None else scale.to(device, dtype)
        self.shift = None if shift is None else shift.to(device, dtype)

    def few(self, count: int) -> Samples:
        """The first ``count`` of them, or all."""
        first = self.ranges[0][:count]
        return Samples(
            [first], self.inputs[: len(first)], self.targets[: len(first)], dtype=self.dtype, device=self.device,
            scale=self.scale, shift=self.shift, tokens=self.tokens, place="device",
        )  # fmt: skip

    def number(self, row: int) -> int:
        """The number in its data set of the sample in ``row``."""
        for block in self.ranges:
            if row < len(block):
                return block.start + row
            row -= len(block)
        raise IndexError(f"row {row} is beyond the samples held")

    def rows(self, indices: Rows) -> Tensor:
        """Row numbers, where the samples are, of samples given by their numbers in the training set."""
        rows = np.full(len(indices), -1, dtype=np.int64)
        offset = 0
        for block in self.ranges:
            inside = (indices >= block.start) & (indices < block.stop) & (rows < 0)
            rows[inside] = indices[inside] - block.start + offset
            offset += len(block)
        assert (rows >= 0).all(), "a sample was asked for that this rank does not hold"
        return torch.from_numpy(rows).to(self.home)

    def take(self, rows: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Normalised inputs in the run's dtype, and targets, on the device."""
        if self._sent is None:
            inputs, targets = self.inputs[rows], self.targets[rows]
        else:
            inputs, targets = (staging.send(rows) for staging in self._sent)
        if self.tokens:
            return inputs.long(), targets
        inputs = inputs.to(self.dtype)
        if self.scale is not None and self.shift is not None:
            inputs = torch.addcmul(self.shift, inputs, self.scale)
        return inputs, targets
