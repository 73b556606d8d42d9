"""Raw data to shards: plan, scratch copy, shuffled shards one by one, manifest last; an interrupted run goes on."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from apts_mpi.partition import block
from apts_mpi.storage.files import DataError, digest_of, file_hash, read_json, require_room, write_json
from apts_mpi.storage.manifest import (
    FORMAT,
    NAME,
    SPLITS,
    Manifest,
    Shard,
    load_manifest,
    parse,
    shard_name,
    write_manifest,
)
from apts_mpi.storage.order import split_orders
from apts_mpi.storage.sources import Options, Source, open_source
from apts_mpi.storage.spool import Progress, Spool, neutral
from apts_mpi.storage.writer import chunk_samples, write_shard

CONVERTER = "1"  # raise it when the same source gives other shards
_PARTIAL = ".partial"  # scratch folder inside the destination


@dataclass(frozen=True)
class Plan:
    """Everything that decides the content of the shards."""

    kind: str
    source: Source
    shards: int
    seed: int
    stratified: bool
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        samples = self.samples
        if not 1 <= self.shards <= min(samples["train"], 99999):
            raise DataError(f"--shards must be in [1, {min(samples['train'], 99999)}] for {samples['train']} samples, got {self.shards}")
        if not 0 <= self.seed < 1 << 63:
            raise DataError(f"--seed must be in [0, 2**63), got {self.seed}")
        if self.stratified and (not self.source.layout.classes or self.source.layout.target_shape):
            raise DataError("--stratified needs one class label a sample")
        source = {"sha256": self.source.sha256, "counts": self.source.counts, "held_out": self.source.held_out}
        own = {"kind": self.kind, "shards": self.shards, "seed": self.seed, "stratified": self.stratified}
        content = {"format": FORMAT, "converter": CONVERTER, "layout": asdict(self.source.layout), "source": source, **own}
        object.__setattr__(self, "digest", digest_of(content))

    @property
    def samples(self) -> dict[str, int]:
        """Samples of train and of test."""
        counts, held = self.source.counts, self.source.held_out
        return {"train": counts["all"] - held, "test": held} if "all" in counts else counts

    def files(self, split: str) -> dict[str, range]:
        """The shard names of a split with the samples of each; test shards are about as large as train shards."""
        samples = self.samples
        count = self.shards if split == "train" else max(1, round(self.shards * samples["test"] / samples["train"]))
        return {shard_name(split, k, count): block(samples[split], count, k) for k in range(count)}

    def lines(self) -> list[str]:
        """What will be written, for people."""
        layout = self.source.layout
        classes = f"{layout.classes} classes" if layout.classes else "regression"
        lines = [f"{self.kind} from {self.source.name}: samples {layout.sample_shape} {layout.input_dtype}, {classes}"]
        for split in SPLITS:
            files = self.files(split)
            size = sum(len(part) for part in files.values()) * layout.sample_bytes / 1e6
            chunk = chunk_samples(layout.sample_bytes, len(next(iter(files.values()))))
            lines.append(f"{split}: {self.samples[split]} samples in {len(files)} files, {size:.1f} MB, about {chunk} samples a chunk")
        return [*lines, f"seed {self.seed}, {'stratified' if self.stratified else 'not stratified'}, plan {self.digest[:12]}"]


@dataclass(frozen=True)
class Report:
    """What a conversion did or would do."""

    plan: tuple[str, ...]
    manifest: Manifest | None  # None after a dry run
    written: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def _silent(what: str, done: int, total: int) -> None:
    """No progress."""


def convert(
    kind: str,
    source: str | Path | None,
    dest: str | Path,
    *,
    shards: int = 1,
    seed: int = 0,
    stratified: bool = False,
    dry_run: bool = False,
    force: bool = False,
    options: Options | None = None,
    progress: Progress = _silent,
) -> Report:
    """Turn raw data into a data set at ``dest``; shards that an earlier run finished with the same plan are kept.

    Not collective: one process converts. DataError for bad input, OSError when the disk refuses.
    """
    opened = open_source(kind, Path(source) if source is not None else None, options or Options())
    plan, folder = Plan(kind, opened, shards, seed, stratified), Path(dest)
    if dry_run:
        return Report(tuple(plan.lines()), None, warnings=opened.notes)
    existed = folder.is_dir()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with _alone(folder):
            return _convert(plan, folder, force, progress)
    except DataError:
        if not existed:
            with contextlib.suppress(OSError):
                folder.rmdir()  # only if nothing was left in it
        raise


def _convert(plan: Plan, folder: Path, force: bool, progress: Progress) -> Report:
    """The work, with the folder to ourselves."""
    kept = _kept(plan, folder, force)
    names = [name for split in SPLITS for name in plan.files(split)]
    if len(kept) == len(names) and (folder / NAME).is_file():
        manifest = load_manifest(folder)
        return Report(tuple(plan.lines()), manifest, (), tuple(names), _warnings(plan, manifest))
    (folder / NAME).unlink(missing_ok=True)  # from here on the folder is not a data set until it is whole again
    total = sum(plan.source.counts.values()) * plan.source.layout.sample_bytes
    spool = Spool(folder / _PARTIAL / "spool", plan.source.layout, plan.digest)
    if not spool.whole:
        require_room(folder, 2 * total)
        try:
            spool.fill(plan.source, progress)
        except DataError:
            shutil.rmtree(spool.folder, ignore_errors=True)
            raise
    manifest = _write(plan, folder, spool, kept, progress)
    shutil.rmtree(spool.folder, ignore_errors=True)
    (folder / _PARTIAL / "journal.json").unlink(missing_ok=True)
    return Report(tuple(plan.lines()), manifest, tuple(n for n in names if n not in kept), tuple(kept), _warnings(plan, manifest))


def _write(plan: Plan, folder: Path, spool: Spool, kept: dict[str, Shard], progress: Progress) -> Manifest:
    """Write the missing shards, note each in the journal, write the manifest last."""
    source, done = plan.source, dict(kept)
    spool.open()
    orders = split_orders(spool.splits, spool.targets if plan.stratified else None, source.held_out, plan.seed)
    statistics = neutral(source.layout) if source.as_is else spool.statistics(orders["train"])
    head: dict[str, Any] = {
        "format": FORMAT, "kind": plan.kind, "converter": CONVERTER, "source": source.name, "source_sha256": source.sha256,
        "seed": plan.seed, "stratified": plan.stratified, "plan": plan.digest,
    }  # fmt: skip
    marks = {key: value if key == "seed" else str(value) for key, value in head.items()}
    marks |= {"classes": source.layout.classes, "scale": source.layout.scale, **asdict(statistics)}
    _note(plan, folder, done)  # before the first shard is there, else nobody would know whose it is
    for split in SPLITS:
        for name, part in plan.files(split).items():
            if name not in done:
                order = orders[split][part.start : part.stop]
                batches = spool.batches(order, chunk_samples(source.layout.sample_bytes, len(part)))
                done[name] = write_shard(folder / name, source.layout, len(part), {**marks, "split": split}, batches)
                _note(plan, folder, done)
            progress("writing", len(done), sum(len(plan.files(each)) for each in SPLITS))
    shards = tuple(done[name] for split in SPLITS for name in plan.files(split))
    manifest = Manifest(**head, layout=source.layout, statistics=statistics, shards=shards)
    write_manifest(folder, manifest)
    return manifest


def _note(plan: Plan, folder: Path, done: dict[str, Shard]) -> None:
    """Write the journal: what a conversion that is cut short leaves to the next one."""
    write_json(folder / _PARTIAL / "journal.json", {"plan": plan.digest, "shards": [asdict(shard) for shard in done.values()]})


def _kept(plan: Plan, folder: Path, force: bool) -> dict[str, Shard]:
    """The finished shards of the same plan whose hash still holds; with ``force`` another data set is removed."""
    try:
        known, shards = _earlier(folder)
    except DataError:
        if not force:
            raise
        known, shards = "", ()
    present = [path for split in SPLITS for path in folder.glob(f"{split}-*-of-*.h5")]
    if known == plan.digest:
        return {shard.name: shard for shard in shards if (folder / shard.name).is_file() and file_hash(folder / shard.name) == shard.sha256}
    if (known or present) and not force:
        raise DataError(f"{folder} holds a data set, or a part of one, from other data or options; add --force to replace it")
    (folder / NAME).unlink(missing_ok=True)
    for path in present:
        path.unlink()
    return {}


def _earlier(folder: Path) -> tuple[str, tuple[Shard, ...]]:
    """The plan and the shards that the manifest, else the journal, of an earlier run knows."""
    if (folder / NAME).is_file():
        manifest = load_manifest(folder)
        return manifest.plan, manifest.shards
    journal = folder / _PARTIAL / "journal.json"
    if not journal.is_file():
        return "", ()
    content = read_json(journal)
    return parse(str, content["plan"]), parse(tuple[Shard, ...], content["shards"])


def _warnings(plan: Plan, manifest: Manifest) -> tuple[str, ...]:
    """What is allowed but worth a word."""
    notes = list(plan.source.notes)
    for split in SPLITS:
        absent = [label for label, count in enumerate(manifest.histogram(split)) if not count]
        if absent:
            notes.append(f"{split} has no sample of {len(absent)} of the classes: {', '.join(map(str, absent[:10]))}")
    return tuple(notes)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep a second conversion out of the folder; the system drops the lock with the process."""
    scratch = folder / _PARTIAL
    scratch.mkdir(exist_ok=True)
    with (scratch / "lock").open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(f"{folder}: another conversion is writing there; wait for it or choose another folder") from error
        except OSError:
            pass  # a file system without locks: the atomic renames still keep every file whole
        try:
            yield
        finally:
            if not any(path.name != "lock" for path in scratch.iterdir()):
                shutil.rmtree(scratch, ignore_errors=True)
