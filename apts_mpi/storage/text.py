"""Text for a character model: windows of characters, and as targets the same windows one character on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from apts_mpi.storage.files import DataError, file_hash
from apts_mpi.storage.manifest import Layout
from apts_mpi.storage.sources import Batch, Options, Source, batch_size, class_dtype

_PIECE = 1 << 20  # characters read at once


def open_text(path: Path, options: Options) -> Source:
    """A UTF-8 file; the sorted characters are the classes, the last share of the windows is the test."""
    length, vocabulary, window = 0, set[str](), options.window
    for piece in _pieces(path):
        length += len(piece)
        vocabulary.update(piece)
    windows = (length - 1) // window
    test = max(1, round(options.test_share * windows))
    if windows < 2:
        raise DataError(f"{path}: {length} characters are too few for two windows of {window}; use a smaller --window")
    names = tuple(sorted(vocabulary))
    dtype = class_dtype(len(names)).replace("u4", "i4")
    layout = Layout((window,), (window,), dtype, class_dtype(len(names)), len(names), names, 1.0)
    counts = {"train": windows - test, "test": test}
    return Source(path.name, file_hash(path), layout, counts, lambda: _stream(path, window, names, counts))


def _pieces(path: Path) -> Iterator[str]:
    """The text, piece by piece, line ends as they are."""
    try:
        with path.open(encoding="utf-8", newline="") as handle:
            while piece := handle.read(_PIECE):
                yield piece
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error}); convert it with iconv") from error


def _stream(path: Path, window: int, names: tuple[str, ...], counts: dict[str, int]) -> Iterator[Batch]:
    """Cut windows of window + 1 characters, neighbours sharing one."""
    points = np.array([ord(name) for name in names])
    left, done, limit = np.empty(0, np.int64), 0, batch_size(8 * window)
    for piece in _pieces(path):
        codes = np.frombuffer(piece.encode("utf-32-le"), "<u4")
        left = np.concatenate((left, np.searchsorted(points, codes)))
        whole = (len(left) - 1) // window
        for start in range(0, whole, limit):
            stop = min(start + limit, whole)
            tokens = left[start * window : stop * window + 1]
            yield from _cut(tokens[:-1].reshape(-1, window), tokens[1:].reshape(-1, window), done, counts["train"])
            done += stop - start
        left = left[max(whole, 0) * window :]


def _cut(inputs: np.ndarray, targets: np.ndarray, start: int, train: int) -> Iterator[Batch]:
    """One batch, in two where the training share ends."""
    border = min(max(train - start, 0), len(inputs))
    if border:
        yield Batch("train", inputs[:border], targets[:border])
    if border < len(inputs):
        yield Batch("test", inputs[border:], targets[border:])
