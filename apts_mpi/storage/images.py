"""An image folder, train/<class>/<file> and test/<class>/<file>, or a tar or zip of one, decoded by Pillow."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from apts_mpi.storage.archive import Member, hash_of, members
from apts_mpi.storage.files import DataError
from apts_mpi.storage.manifest import SPLITS
from apts_mpi.storage.sources import (
    Array,
    Batch,
    Options,
    Source,
    batch_size,
    label_layout,
)

FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".bmp": "BMP", ".ppm": "PPM", ".pgm": "PPM", ".webp": "WEBP"}
PIXEL_LIMIT = 64_000_000  # of one image


def open_imagefolder(path: Path, options: Options) -> Source:
    """One pass over the names finds classes and counts; the first image finds the size of all."""
    counts, names, shape, ignored = {"train": 0, "test": 0}, {"train": set[str](), "test": set[str]()}, None, 0
    for member in members(path):
        place = _place(member)
        if place is None:
            ignored += 1
            continue
        counts[place[0]] += 1
        names[place[0]].add(place[1])
        if shape is None:
            shape = _decode(path, member, options).shape
    if shape is None or not all(counts.values()):
        raise DataError(f"{path}: needs images as train/<class>/<file> and test/<class>/<file>; found {counts}")
    if names["test"] - names["train"]:
        raise DataError(f"{path}: classes {sorted(names['test'] - names['train'])[:5]} are in test and not in train")
    classes = tuple(sorted(names["train"]))
    layout = label_layout(tuple(shape), classes)
    notes = (f"{ignored} other files were left out",) if ignored else ()
    return Source(path.name, hash_of(path), layout, counts, lambda: _stream(path, options, classes, tuple(shape)), notes=notes)


def _place(member: Member) -> tuple[str, str] | None:
    """Split and class of an image, None for any other file."""
    parts = member.path.parts
    known = len(parts) >= 3 and parts[-3] in SPLITS and member.path.suffix.lower() in FORMATS and not parts[-1].startswith(".")
    return (parts[-3], parts[-2]) if known else None


def _stream(path: Path, options: Options, classes: tuple[str, ...], shape: tuple[int, ...]) -> Iterator[Batch]:
    """Decode all images; a batch ends when it is full or the split changes."""
    index = {name: label for label, name in enumerate(classes)}
    limit = batch_size(int(np.prod(shape)))
    split, images, labels = "", list[Array](), list[int]()
    for member in members(path):
        place = _place(member)
        if place is None:
            continue
        if images and (place[0] != split or len(images) == limit):
            yield Batch(split, np.stack(images), np.array(labels))
            images, labels = [], []
        image = _decode(path, member, options)
        if image.shape != shape:
            raise DataError(f"{path}: {member.path} is {image.shape}, the first image is {shape}; use --image-size HEIGHT WIDTH")
        split = place[0]
        images.append(image)
        labels.append(index[place[1]])
    if images:
        yield Batch(split, np.stack(images), np.array(labels))


def _decode(path: Path, member: Member, options: Options) -> Array:
    """One image as (C, H, W) uint8; DataError for one that is damaged or of absurd size."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("images need Pillow, which is not installed; type: pip install pillow") from error
    raw = member.read()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(raw), formats=(FORMATS[member.path.suffix.lower()],)) as image:
                if image.width * image.height > PIXEL_LIMIT:
                    raise DataError(f"{path}: {member.path} has {image.width} x {image.height} pixels, at most {PIXEL_LIMIT} are read")
                return _array(image, options)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{path}: {member.path} has too many pixels ({error})") from error
    except (OSError, SyntaxError, ValueError, EOFError, OverflowError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: {member.path} is not an image that can be read ({error})") from error


def _array(image: Any, options: Options) -> Array:
    gray = options.gray or image.mode in ("1", "L", "I;16", "I")
    image = image.convert("L" if gray else "RGB")
    if options.image_size is not None:
        image = image.resize(options.image_size[::-1])
    pixels = np.asarray(image, np.uint8)
    return pixels[np.newaxis] if gray else np.ascontiguousarray(pixels.transpose(2, 0, 1))
