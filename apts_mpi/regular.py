"""Ordinary files of bounded size inside their folder, and JSON objects that carry the checksum of their values."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any

SUM = "sha256_of_the_rest"  # the key of the checksum
TEXT_BYTES = 1 << 30  # of a text file: records of some million iterations
AGAIN = "copy it again, or take another one"


class DataError(ValueError):
    """A file or an argument is not what it should be; the message names it and says what to do."""


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Make every OSError inside name ``path``, the file that a person knows."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def inside(folder: Path, name: str) -> Path:
    """``folder / name``; DataError if it leads out of the folder, by its spelling or by a symbolic link."""
    path = folder / name
    try:
        leads_out = Path(name).name != name or path.resolve().parent != folder.resolve()
    except (RuntimeError, ValueError):  # a loop of symbolic links, a zero byte
        leads_out = True
    if leads_out:
        raise DataError(f"{path}: leads out of its folder; put the file itself there")
    return path


@contextmanager
def open_regular(path: Path, limit: int) -> Iterator[BufferedReader]:
    """An ordinary file of at most ``limit`` bytes for reading, else DataError; a pipe does not block. OSError names ``path``."""
    with naming(path):
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        found = os.fstat(descriptor)
        wrong = "" if stat.S_ISREG(found.st_mode) else "is no ordinary file; put the file itself there"
        if found.st_size > limit:
            wrong = f"{found.st_size} bytes are too many for this file (at most {limit}); {AGAIN}"
        if wrong:
            os.close(descriptor)
            raise DataError(f"{path}: {wrong}")
        with os.fdopen(descriptor, "rb") as handle:
            yield handle


def read_bytes(path: Path, limit: int = TEXT_BYTES) -> bytes:
    """The content of an ordinary file of at most ``limit`` bytes; OSError or DataError name it."""
    with open_regular(path, limit) as handle:
        return handle.read(os.fstat(handle.fileno()).st_size)  # which sets aside as much as it is given


def read_object(path: Path, limit: int = 64 << 20) -> dict[str, Any]:
    """The object in a JSON file of at most ``limit`` bytes; OSError or DataError name it."""
    try:
        value = json.loads(read_bytes(path, limit).decode("utf-8"))
    except DataError:
        raise
    except (ValueError, RecursionError) as error:  # also of numbers with too many digits
        raise DataError(f"{path} is not JSON: {error}") from error
    if type(value) is not dict:
        raise DataError(f"{path} must hold a JSON object")
    return value


def with_sum(values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` and their checksum, to be written as JSON; no nan and no inf."""
    return {**values, SUM: _sum(values)}


def sum_holds(values: Mapping[str, Any]) -> bool:
    """Whether ``values`` from a JSON file are those that ``with_sum`` saw."""
    return values.get(SUM) == _sum({name: value for name, value in values.items() if name != SUM})


def _sum(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode("ascii")).hexdigest()
