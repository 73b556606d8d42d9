"""The timers of all ranks in records.h5, whole phases and every iteration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import h5py
import numpy as np
from numpy.typing import NDArray

from apts_mpi.timing import split


def write_timers(group: h5py.Group, timers: Sequence[Sequence[float]]) -> None:
    """timing/<phase>/<region>: seconds of each rank (ranks,); calls, messages and bytes as attributes."""
    ranks = [split(row) for row in timers]
    for phase, regions in ranks[0].items():
        part = group.create_group(phase)
        part.create_dataset("rank", data=np.arange(len(ranks))).make_scale("rank")
        for region in regions:
            cells = [rank[phase][region] for rank in ranks]
            entry = part.create_dataset(region, data=[cell["seconds"] for cell in cells])
            entry.dims[0].attach_scale(part["rank"])
            entry.attrs["units"] = "s"
            entry.attrs.update({name: [int(cell[name]) for cell in cells] for name in ("calls", "messages", "bytes")})


def write_laps(group: h5py.Group, laps: Mapping[str, NDArray[np.float32]]) -> None:
    """timing/laps/<region>: seconds of each iteration on each rank (iterations, ranks), float32."""
    for name, size in zip(("iteration", "rank"), next(iter(laps.values())).shape, strict=True):
        group.create_dataset(name, data=np.arange(size)).make_scale(name)
    for region, seconds in laps.items():
        entry = group.create_dataset(region, data=seconds)
        entry.attrs["units"] = "s"
        for axis, name in enumerate(("iteration", "rank")):
            entry.dims[axis].attach_scale(group[name])
