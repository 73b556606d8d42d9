"""Reading this rank's share of a data set against reading the same bytes of the same files like dd."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from apts_mpi.bench.measure import Plan, in_turn
from apts_mpi.contracts import Communicator
from apts_mpi.parallel.handshake import together
from apts_mpi.partition import block
from apts_mpi.storage.shards import open_dataset

BUFFER = 2**20

Part = tuple[Path, int, int]  # a file, and the bytes of it that are read


def measure(comm: Communicator, path: str, plan: Plan, cold: bool) -> dict[str, Any]:
    """Both, from a warm page cache or from a ``cold`` one; every rank calls."""
    dataset = together(comm, lambda: open_dataset(path))
    mine = block(dataset.manifest.samples("train"), comm.size, comm.rank)
    files = parts(Path(path), [(shard.name, shard.samples) for shard in dataset.manifest.of("train")], mine)

    def ours() -> None:
        if cold:
            forget(files)
        open_dataset(path).split("train").read(mine.start, mine.stop)

    def plain() -> None:
        if cold:
            forget(files)
        read_plain(files)

    together(comm, ours)  # a file that one rank cannot read is found here
    result = in_turn(comm, ours, plain, plan)
    nbytes = sum(row[0] for row in comm.gather([float(sum(hi - lo for _, lo, hi in files))]))
    rates = {f"{name}_bytes_per_s": nbytes / result[f"{name}_s"]["median"] for name in ("ours", "base")}
    return {**result, **rates, "bytes": int(nbytes), "samples": dataset.manifest.samples("train"), "cache": "cold" if cold else "warm"}


def parts(folder: Path, shards: list[tuple[str, int]], mine: range) -> list[Part]:
    """The bytes of each file in proportion to the samples ``mine`` that it holds."""
    found, start = [], 0
    for name, samples in shards:
        lo, hi = (min(max(border - start, 0), samples) for border in (mine.start, mine.stop))
        size = (folder / name).stat().st_size
        if hi > lo:
            found.append((folder / name, size * lo // samples, size * hi // samples))
        start += samples
    return found


def read_plain(files: list[Part]) -> int:
    """Read the bytes into one small buffer, as dd does; returns how many."""
    buffer, done = memoryview(bytearray(BUFFER)), 0
    for path, lo, hi in files:
        with path.open("rb", buffering=0) as file:
            file.seek(lo)
            while lo < hi and (count := file.readinto(buffer[: hi - lo])):
                lo, done = lo + count, done + count
    return done


def forget(files: list[Part]) -> None:
    """Ask the kernel to drop its copy of the files; clean pages go at once on a local disk."""
    for path, _, _ in files:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
