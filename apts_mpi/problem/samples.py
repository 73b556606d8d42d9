"""The samples of one rank, resident on its device in stored form (uint8 images stay uint8)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

Rows = np.ndarray[tuple[int], np.dtype[np.int64]]


class Samples:
    """Inputs and targets of some index ranges of the training set, one after the other.

    ``inputs``: (rows, *sample_shape), any real dtype; ``targets``: (rows, ...). ``ranges`` say which
    samples of the training set the rows are. What the model sees is inputs * scale + shift in ``dtype``;
    ``tokens`` are handed to it as integers.
    """

    def __init__(
        self, ranges: Sequence[range], inputs: Tensor, targets: Tensor, *, dtype: torch.dtype, device: torch.device,
        scale: Tensor | None = None, shift: Tensor | None = None, tokens: bool = False,
    ) -> None:  # fmt: skip
        if sum(map(len, ranges)) != len(inputs) or len(inputs) != len(targets):
            raise ValueError(f"{len(inputs)} inputs and {len(targets)} targets do not fill the ranges {ranges}")
        self.ranges = list(ranges)
        self.inputs, self.targets = inputs.to(device), targets.to(device)
        if self.targets.dtype.is_floating_point:
            self.targets = self.targets.to(dtype)
        self.dtype, self.device, self.tokens = dtype, device, tokens
        self.scale = None if scale is None else scale.to(device, dtype)
        self.shift = None if shift is None else shift.to(device, dtype)

    def few(self, count: int) -> Samples:
        """The first ``count`` of them, or all."""
        first = self.ranges[0][:count]
        return Samples(
            [first], self.inputs[: len(first)], self.targets[: len(first)], dtype=self.dtype, device=self.device,
            scale=self.scale, shift=self.shift, tokens=self.tokens,
        )  # fmt: skip

    def number(self, row: int) -> int:
        """The number in its data set of the sample in ``row``."""
        for block in self.ranges:
            if row < len(block):
                return block.start + row
            row -= len(block)
        raise IndexError(f"row {row} is beyond the samples held")

    def rows(self, indices: Rows) -> Tensor:
        """Row numbers, on the device, of samples given by their numbers in the training set."""
        rows = np.full(len(indices), -1, dtype=np.int64)
        offset = 0
        for block in self.ranges:
            inside = (indices >= block.start) & (indices < block.stop) & (rows < 0)
            rows[inside] = indices[inside] - block.start + offset
            offset += len(block)
        assert (rows >= 0).all(), "a sample was asked for that this rank does not hold"
        return torch.from_numpy(rows).to(self.device)

    def take(self, rows: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Normalised inputs in the run's dtype, and targets."""
        inputs = self.inputs[rows]
        if self.tokens:
            return inputs.long(), self.targets[rows]
        inputs = inputs.to(self.dtype)
        if self.scale is not None and self.shift is not None:
            inputs = torch.addcmul(self.shift, inputs, self.scale)
        return inputs, self.targets[rows]
