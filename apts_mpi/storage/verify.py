"""Look at a data set: what it says of itself, and whether its files agree with that."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from apts_mpi.regular import DataError, inside
from apts_mpi.storage.files import file_hash
from apts_mpi.storage.manifest import SPLITS, Manifest, Shard, load_manifest
from apts_mpi.storage.shards import Split
from apts_mpi.storage.sources import batch_size
from apts_mpi.storage.spool import checked_inputs, checked_targets


@dataclass(frozen=True)
class Verdict:
    """What one rank found in its shards."""

    shards: int
    samples: int
    bytes: int
    problems: tuple[str, ...]  # one for each file that is not in order; empty: all is well


def info(path: str | Path) -> list[str]:
    """A data set in lines of text, from its manifest alone."""
    folder = Path(path)
    manifest = load_manifest(folder)
    layout, statistics = manifest.layout, manifest.statistics
    one = "one label" if layout.classes else "one number"
    lines = [
        f"{folder}: {manifest.kind} from {manifest.source}, format {manifest.format}, converter {manifest.converter}",
        f"inputs    {layout.sample_shape} {layout.input_dtype}, value / {layout.scale:g} is what is normalised",
        f"targets   {layout.target_shape or one} {layout.target_dtype}, {layout.classes or 'no'} classes",
        f"mean std  {statistics.mean:.6g} {statistics.std:.6g}",
    ]
    channels = list(zip(statistics.channel_mean, statistics.channel_std, strict=True))
    if 1 < len(channels) <= 16:
        lines.append("channels  " + ", ".join(f"{mean:.6g} {std:.6g}" for mean, std in channels))
    for split in SPLITS:
        shards, histogram = manifest.of(split), manifest.histogram(split)
        size = sum(shard.bytes for shard in shards) / 1e6
        lines.append(f"{split:9s} {manifest.samples(split)} samples in {len(shards)} files, {size:.1f} MB")
        if 0 < len(histogram) <= 20:
            names = layout.class_names or tuple(map(str, range(layout.classes)))
            lines.append("          " + ", ".join(f"{name!s} {count}" for name, count in zip(names, histogram, strict=True)))
    lines.append(f"shuffle   seed {manifest.seed}, {'stratified' if manifest.stratified else 'not stratified'}")
    lines.append(f"source    sha256 {manifest.source_sha256}")
    return [*lines, f"data set  sha256 {manifest.fingerprint}"]


def verify(path: str | Path, rank: int = 0, size: int = 1) -> Verdict:
    """Check the shards rank, rank + size, ...: hash, counts, histogram, label range and finite values.

    Not collective; the caller adds up the verdicts of all ranks. A missing or unreadable data set is a problem, not an error.
    """
    folder = Path(path)
    try:
        manifest = load_manifest(folder)
    except (DataError, OSError) as error:
        return Verdict(0, 0, 0, (str(error),))
    mine = manifest.shards[rank::size]
    problems = tuple(filter(None, (_problem(folder, manifest, shard) for shard in mine)))
    return Verdict(len(mine), sum(shard.samples for shard in mine), sum(shard.bytes for shard in mine), problems)


def _problem(folder: Path, manifest: Manifest, shard: Shard) -> str:
    """What is wrong with one shard, empty if it is in order; of a file with another hash nothing more is asked."""
    path = folder / shard.name
    try:
        path = inside(folder, shard.name)
        if path.is_file() and path.stat().st_size == shard.bytes and file_hash(path) != shard.sha256:
            return f"{path}: its SHA-256 is not the one in the manifest; copy it again or convert again"
        found = _histogram(folder, manifest, shard)
        if found != shard.histogram:
            return f"{path}: has {found} targets per class, the manifest says {shard.histogram}"
    except (DataError, OSError) as error:
        return str(error) if str(path) in str(error) else f"{path}: {error}"
    return ""


def _histogram(folder: Path, manifest: Manifest, shard: Shard) -> tuple[int, ...]:
    """Read all samples of a shard, check every value, and count the targets."""
    layout, split = manifest.layout, Split(folder, manifest, shard.split)
    start = sum(other.samples for other in manifest.of(shard.split) if other.name < shard.name)
    counts, step = np.zeros(layout.classes, np.int64), batch_size(layout.sample_bytes)
    for lo in range(start, start + shard.samples, step):
        inputs, targets = split.read(lo, min(lo + step, start + shard.samples))
        checked_inputs(inputs, layout, lo)
        checked_targets(targets, layout, lo)
        if layout.classes:
            counts += np.bincount(targets.ravel(), minlength=layout.classes)
    return tuple(counts.tolist())
