"""What a data set is, as written in its manifest.json: layout, statistics, origin and shards.

The manifest is written last, so a folder that has one is complete. Normalisation constants are
in units of the scaled value: normalised = (x / scale - mean) / std, scale being 255 for uint8
images, 16 for the digits, 1 for everything else.
"""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from apts_mpi.regular import SUM, DataError, inside, sum_holds, with_sum
from apts_mpi.storage.files import digest_of, read_json, write_json

FORMAT = 1  # of the shards and of this file
NAME = "manifest.json"
SPLITS = ("train", "test")
INPUT_DTYPES = ("|u1", "<u2", "<i4", "<f4", "<f8")
TARGET_DTYPES = ("|u1", "<u2", "<u4", "<f4", "<f8")
_HEX = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Layout:
    """Shapes and types of one sample; ``classes`` is 0 for regression."""

    sample_shape: tuple[int, ...]  # (C, H, W) for images
    target_shape: tuple[int, ...]  # () for one label a sample
    input_dtype: str
    target_dtype: str
    classes: int
    class_names: tuple[str, ...]
    scale: float  # x / scale is the value that the statistics speak of

    def __post_init__(self) -> None:
        if self.input_dtype not in INPUT_DTYPES or self.target_dtype not in TARGET_DTYPES:
            raise DataError(f"unknown types {self.input_dtype}, {self.target_dtype}; known are {INPUT_DTYPES}, {TARGET_DTYPES}")
        if any(size < 1 for size in (*self.sample_shape, *self.target_shape)) or self.sample_bytes > 1 << 30:
            raise DataError(f"impossible sample shape {self.sample_shape} or target shape {self.target_shape}")
        if self.classes < 0 or (self.target_dtype[1] == "f") != (self.classes == 0):
            raise DataError(f"{self.classes} classes do not go with targets of type {self.target_dtype}")
        if self.class_names and len(self.class_names) != self.classes:
            raise DataError(f"{len(self.class_names)} class names for {self.classes} classes")
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise DataError(f"scale must be positive, got {self.scale:g}")

    @property
    def channels(self) -> int:
        """C of an image (C, H, W), the features of a float vector, else 1."""
        vector = len(self.sample_shape) == 1 and self.input_dtype[1] == "f"
        return self.sample_shape[0] if vector or len(self.sample_shape) == 3 else 1

    @property
    def sample_bytes(self) -> int:
        """Stored bytes of one sample with its target."""
        return math.prod(self.sample_shape) * int(self.input_dtype[2]) + math.prod(self.target_shape) * int(self.target_dtype[2])


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation of the scaled training inputs, over everything and per channel."""

    mean: float
    std: float
    channel_mean: tuple[float, ...]
    channel_std: tuple[float, ...]

    def __post_init__(self) -> None:
        stds = (self.std, *self.channel_std)
        if not all(math.isfinite(value) for value in (self.mean, *self.channel_mean, *stds)) or min(stds) <= 0:
            raise DataError("means must be finite, standard deviations finite and positive")


@dataclass(frozen=True)
class Shard:
    """One file of a split."""

    name: str
    split: str
    samples: int
    bytes: int
    sha256: str
    histogram: tuple[int, ...]  # targets per class; empty for regression

    def __post_init__(self) -> None:
        if not re.fullmatch(r"(train|test)-\d{5}-of-\d{5}\.h5", self.name) or not self.name.startswith(self.split):
            raise DataError(f"shard name {self.name!r} is not like {self.split}-00000-of-00004.h5")
        if not 0 < self.samples < 1 << 48 or not _HEX.fullmatch(self.sha256) or min(self.histogram, default=0) < 0:
            raise DataError(f"shard {self.name}: impossible sample count, SHA-256 or histogram")


def shard_name(split: str, index: int, count: int) -> str:
    """The file name of one shard."""
    return f"{split}-{index:05d}-of-{count:05d}.h5"


@dataclass(frozen=True)
class Manifest:
    """The whole of manifest.json."""

    format: int
    kind: str  # the converter that wrote it: mnist, cifar10, ...
    converter: str  # its version
    source: str  # name of the source file or folder
    source_sha256: str
    seed: int  # of the shuffle of the training split
    stratified: bool
    plan: str  # hash of everything that decides the content of the shards
    layout: Layout
    statistics: Statistics
    shards: tuple[Shard, ...]

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise DataError(f"format {self.format} is not the format {FORMAT} that this version reads; convert the data again")
        if len(self.statistics.channel_mean) != self.layout.channels or len(self.statistics.channel_std) != self.layout.channels:
            raise DataError(f"the statistics are not those of {self.layout.channels} channels")
        for split in SPLITS:
            mine = [shard for shard in self.shards if shard.split == split]
            if not mine or [shard.name for shard in mine] != [shard_name(split, k, len(mine)) for k in range(len(mine))]:
                raise DataError(f"the list of {split} shards is incomplete or out of order")
        for shard in self.shards:
            wanted = shard.samples * math.prod(self.layout.target_shape) if self.layout.classes else 0
            if len(shard.histogram) != self.layout.classes or sum(shard.histogram) != wanted:
                raise DataError(f"the histogram of {shard.name} does not count its {shard.samples} samples")

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 over the content of the manifest, the hashes of all shards with it."""
        return digest_of(asdict(self))

    def of(self, split: str) -> tuple[Shard, ...]:
        """The shards of one split, in order."""
        if split not in SPLITS:
            raise DataError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
        return tuple(shard for shard in self.shards if shard.split == split)

    def samples(self, split: str) -> int:
        """Samples of one split."""
        return sum(shard.samples for shard in self.of(split))

    def histogram(self, split: str) -> tuple[int, ...]:
        """Targets per class of one split."""
        return tuple(map(sum, zip(*(shard.histogram for shard in self.of(split)), strict=True)))


def load_manifest(folder: Path) -> Manifest:
    """Read and check manifest.json of a data set; DataError names the file and what to do."""
    path = folder / NAME
    if not path.is_file():
        raise DataError(_missing(folder))
    try:
        content = read_json(inside(folder, NAME))
        if isinstance(content, dict) and SUM in content:  # since there are checksums
            if not sum_holds(content):
                raise DataError("is damaged: its values are not those that were written; copy it again or convert again")
            del content[SUM]
        manifest = parse(Manifest, content)
    except DataError as error:
        raise DataError(f"{error}" if str(path) in str(error) else f"{path}: {error}") from error
    assert isinstance(manifest, Manifest)
    return manifest


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write manifest.json with its checksum, atomically."""
    write_json(folder / NAME, with_sum(asdict(manifest)))


def _missing(folder: Path) -> str:
    """What to type when there is no data set."""
    if folder.is_file():
        other = f"name its folder, {folder.parent}" if folder.name == NAME else f"name the folder that holds {NAME}"
        return f"{folder} is a file, and a data set is a folder; {other}"
    name, beside = folder.name, sorted(path.parent.name for path in folder.parent.glob(f"*/{NAME}"))
    found = f"; data sets beside it: {', '.join(beside)}" if beside else ""
    lines = [f"no data set at {folder} ({NAME} is missing); check the path{found}", "or make it with"]
    if name in ("mnist", "fashion-mnist", "cifar10"):
        lines.append(f"  apts-mpi data fetch {name} raw/{name}")
        lines.append(f"  apts-mpi data convert {'cifar10' if name == 'cifar10' else 'mnist'} raw/{name} {folder} --shards 4")
    else:
        lines.append(f"  apts-mpi data convert digits {folder}")
        lines.append("or from files of your own, see: apts-mpi data convert --help")
    return "\n".join(lines)


def parse(kind: Any, raw: Any, where: str = "manifest") -> Any:
    """``raw`` JSON as an object of the annotated type ``kind``: dataclass, tuple of one type, int, float, str or bool."""
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        names = [entry.name for entry in fields(kind)]
        if not isinstance(raw, dict) or sorted(raw) != sorted(names):
            raise DataError(f"{where} must have exactly the keys {', '.join(names)}")
        assert isinstance(kind, type)
        return kind(**{name: parse(hints[name], raw[name], f"{where}.{name}") for name in names})
    if get_origin(kind) is tuple:
        if not isinstance(raw, list):
            raise DataError(f"{where} must be a list")
        return tuple(parse(get_args(kind)[0], item, f"{where}[{index}]") for index, item in enumerate(raw))
    if kind is float and isinstance(raw, int | float) and not isinstance(raw, bool):
        return float(raw)
    if not isinstance(raw, kind) or (isinstance(raw, bool) and kind is not bool):
        raise DataError(f"{where} must be of type {kind.__name__}, got {raw!r}")
    return raw
