"""Files that are either whole or absent: hashes, atomic replacement, room on the disk."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from apts_mpi.regular import DataError, read_bytes, write_new

__all__ = ["DataError", "digest_of", "file_hash", "read_json", "replacing", "require_room", "sync", "write_json"]


def file_hash(path: Path, algorithm: str = "sha256") -> str:
    """Hex digest of a file, read in pieces of 1 MiB."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb") as handle:
        while piece := handle.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Force a file or a folder to the disk; some network file systems cannot do it for folders."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name beside ``path``; on success it becomes ``path`` in one step, else it is removed.

    The order is: write, close, fsync the file, rename, fsync the folder. A crash leaves the old
    file, or the new one, never a part.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    write_new(temporary, b"")  # a link planted at this name is no file that we write to
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` as JSON, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="ascii")


def read_json(path: Path, limit: int = 64 << 20) -> Any:
    """The content of a JSON file of at most ``limit`` bytes; DataError unless it can be read."""
    try:
        return json.loads(read_bytes(path, limit).decode("utf-8"))
    except DataError:
        raise
    except (ValueError, RecursionError) as error:  # also of numbers with too many digits
        raise DataError(f"{path}: not a JSON file ({error}); make the data set again or copy it again") from error


def digest_of(content: Any) -> str:
    """Hex SHA-256 of the canonical JSON form of ``content``."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode("ascii")).hexdigest()


def require_room(folder: Path, needed: int) -> None:
    """Raise OSError(ENOSPC) unless ``needed`` bytes fit on the disk of ``folder``."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(errno.ENOSPC, f"{needed / 1e6:.0f} MB are needed and {free / 1e6:.0f} MB are free", str(folder))
