"""Raw data as a stream of batches: what every format is turned into before it becomes shards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from apts_mpi.storage.files import DataError, digest_of, file_hash
from apts_mpi.storage.manifest import Layout

Array = NDArray[Any]
BATCH_BYTES = 4 << 20  # of one batch, about


class Batch(NamedTuple):
    """Consecutive samples of one split, in the order of the source."""

    split: str  # train, test, or all when the converter is to cut
    inputs: Array  # (b, *sample_shape)
    targets: Array  # (b, *target_shape)


@dataclass(frozen=True)
class Options:
    """What the formats may ask; each reads its own."""

    test_share: float = 0.1  # npz with x, y alone; text
    classes: int = 0  # npz: 0 finds it from integer targets; float targets with 0 are regression
    float64: bool = False  # npz: keep floats of 64 bits
    window: int = 64  # text: characters in a sample
    points: int = 4096  # poisson: training samples
    answer: bool = False  # poisson: the targets are u, not f
    image_size: tuple[int, int] | None = None  # imagefolder: resize to (height, width)
    gray: bool = False  # imagefolder: one channel

    def __post_init__(self) -> None:
        if not 0 < self.test_share < 1:
            raise DataError(f"--test-share must be in (0, 1), got {self.test_share:g}")
        if min(self.window, self.points, *(self.image_size or ())) < 1 or self.classes < 0:
            raise DataError("--window, --points and --image-size must be positive, --classes not negative")


@dataclass(frozen=True)
class Source:
    """An opened raw data set; ``stream`` may be called more than once and uses bounded memory."""

    name: str
    sha256: str
    layout: Layout
    counts: dict[str, int]  # samples per split: {train, test} or {all}
    stream: Callable[[], Iterator[Batch]]
    held_out: int = 0  # test samples to draw by the seed from {all}
    notes: tuple[str, ...] = ()
    as_is: bool = False  # inputs that mean something, such as coordinates, are never normalised


def label_layout(sample_shape: tuple[int, ...], names: tuple[str, ...], scale: float = 255.0) -> Layout:
    """The layout of uint8 images with one class label each."""
    return Layout(sample_shape, (), "|u1", class_dtype(len(names)), len(names), names, scale)


def class_dtype(classes: int) -> str:
    """The smallest stored type of labels 0..classes-1."""
    return "|u1" if classes <= 1 << 8 else "<u2" if classes <= 1 << 16 else "<u4"


def batch_size(sample_bytes: int) -> int:
    """Samples in a batch of about BATCH_BYTES."""
    return max(1, BATCH_BYTES // max(1, sample_bytes))


def open_source(kind: str, path: Path | None, options: Options) -> Source:
    """Open raw data of one of the known kinds; DataError names what is missing or wrong."""
    if kind == "digits":
        return digits()
    if kind == "poisson":
        from apts_mpi.storage.poisson import open_poisson

        return open_poisson(options)
    if path is None or not path.exists():
        raise DataError(f"source {path} does not exist" if path else f"data convert {kind} needs a SOURCE")
    return _opener(kind)(path, options)


def _opener(kind: str) -> Callable[[Path, Options], Source]:
    """The function that opens one kind; Pillow and others are imported only when asked for."""
    from apts_mpi.storage import arrays, cifar, images, text

    known = {
        "mnist": arrays.open_mnist,
        "npz": arrays.open_npz,
        "cifar10": cifar.open_cifar10,
        "imagefolder": images.open_imagefolder,
        "text": text.open_text,
    }
    if kind not in known:
        raise DataError(f"kind must be one of digits, {', '.join(known)}, poisson, got {kind!r}")
    return known[kind]


def source_hash(paths: list[Path]) -> str:
    """One SHA-256 for a list of files: of the only file, or over the names and hashes of all."""
    if len(paths) == 1:
        return file_hash(paths[0])
    return digest_of([[path.name, file_hash(path)] for path in paths])


def digits() -> Source:
    """scikit-learn's 1,797 handwritten digits, (1, 8, 8) uint8 with values 0..16, 297 of them for the test."""
    try:
        from sklearn.datasets import load_digits  # type: ignore[import-untyped,unused-ignore]
    except ImportError as error:
        raise ImportError("the digits come with scikit-learn, which is not installed; type: pip install 'apts_mpi[demo]'") from error
    raw = load_digits()
    inputs = raw.data.astype(np.uint8).reshape(-1, 1, 8, 8)
    targets = raw.target.astype(np.uint8)
    sha = digest_of([inputs.tobytes().hex(), targets.tobytes().hex()])
    layout = label_layout((1, 8, 8), tuple("0123456789"), 16.0)
    return Source("scikit-learn digits", sha, layout, {"all": len(targets)}, lambda: iter([Batch("all", inputs, targets)]), held_out=297)
