"""Ordinary files of bounded size inside their folder, and JSON objects that carry the checksum of their values."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any

SUM = "sha256_of_the_rest"  # the key of the checksum
TOML_BYTES, DOTS = 1 << 16, 2000  # reading a dotted key takes time by the square of its length
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


def write_new(path: Path, data: bytes) -> None:
    """Write a file that did not exist; what has the name is removed first, and a link is never followed. OSError names ``path``."""
    with naming(path):
        path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        with os.fdopen(descriptor, "wb") as handle:
            handle.write(data)


def read_object(path: Path, limit: int = 4 << 20) -> dict[str, Any]:
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


def read_toml(path: Path) -> dict[str, Any]:
    """The TOML in a file of a person, which may be a pipe too; OSError, or ValueError that says what is wrong with the text."""
    with path.open("rb") as handle:
        raw = handle.read(TOML_BYTES + 1)
    if len(raw) > TOML_BYTES:
        raise DataError(f"more than {TOML_BYTES} bytes are too many for settings")
    if max((line.count(b".") for line in raw.splitlines()), default=0) > DOTS:
        raise DataError(f"a line with more than {DOTS} dots is too much for settings")
    try:
        return tomllib.loads(raw.decode("utf-8"))
    except RecursionError:
        raise DataError("tables or lists stand too deep in one another") from None


def read_summed(path: Path, limit: int = 64 << 20) -> dict[str, Any]:
    """``read_object``; DataError if it carries a checksum that does not hold. Files of before there were any are taken as they are."""
    values = read_object(path, limit)
    if SUM in values and not sum_holds(values):
        raise DataError(f"{path} is damaged: its values are not those that were written; {AGAIN}")
    return values


def with_sum(values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` and their checksum, to be written as JSON."""
    return {**values, SUM: _sum(values)}


def sum_holds(values: Mapping[str, Any]) -> bool:
    """Whether ``values`` from a JSON file are those that ``with_sum`` saw."""
    return values.get(SUM) == _sum({name: value for name, value in values.items() if name != SUM})


def _sum(values: Mapping[str, Any]) -> str:
    plain = json.loads(json.dumps(values))  # as they will be read: keys are texts, tuples lists
    return hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode("ascii")).hexdigest()
