"""The files of a folder, a tar (packed or not) or a zip, one after the other, without unpacking anything to disk."""

from __future__ import annotations

import lzma
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from apts_mpi.storage.files import DataError, digest_of, file_hash

MEMBER_LIMIT = 256 << 20  # bytes of one member, unpacked
_ERRORS = (OSError, EOFError, tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, RuntimeError, NotImplementedError)


class Member(NamedTuple):
    """One file; ``read`` is valid until the next one is asked for."""

    path: PurePosixPath
    size: int
    read: Callable[[], bytes]


def members(source: Path) -> Iterator[Member]:
    """All regular files, in sorted order of a folder, in their own order of an archive.

    DataError for a damaged archive and for members that lead out of it, are links or devices, or are too large.
    """
    inner = _folder(source) if source.is_dir() else _zip(source) if zipfile.is_zipfile(source) else _tar(source)
    try:
        for member in inner:
            if member.path.is_absolute() or ".." in member.path.parts or "\\" in str(member.path):
                raise DataError(f"{source}: refused {str(member.path)!r}, which leads out of the archive")
            if member.size > MEMBER_LIMIT:
                raise DataError(f"{source}: refused {str(member.path)!r} of {member.size} bytes, at most {MEMBER_LIMIT} are read")
            yield member
    except _ERRORS as error:
        raise DataError(f"{source}: not a folder, tar or zip that can be read ({error}); get the file again") from error


def _folder(source: Path) -> Iterator[Member]:
    for root, folders, names in os.walk(source):
        folders.sort()
        for name in sorted(names):
            path = Path(root, name)
            yield Member(PurePosixPath(path.relative_to(source).as_posix()), path.stat().st_size, path.read_bytes)


def _zip(source: Path) -> Iterator[Member]:
    with zipfile.ZipFile(source) as archive:
        for info in archive.infolist():
            if not info.is_dir():
                yield Member(PurePosixPath(info.filename), info.file_size, lambda info=info: archive.read(info))  # type: ignore[misc]


def _tar(source: Path) -> Iterator[Member]:
    with tarfile.open(source, "r|*") as archive:
        for info in archive:
            archive.members = []  # type: ignore[attr-defined]  # else it remembers every member it has seen
            if info.isdir():
                continue
            if not info.isreg():
                raise DataError(f"{source}: refused {info.name!r}, a link or device; pack the files themselves")
            yield Member(PurePosixPath(info.name), info.size, lambda info=info: _extract(archive, info))  # type: ignore[misc]


def _extract(archive: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    handle = archive.extractfile(info)
    assert handle is not None  # a regular file
    raw = handle.read()
    if len(raw) != info.size:
        raise EOFError(f"{info.name} is cut off")
    return raw


def hash_of(source: Path) -> str:
    """SHA-256 of an archive, or over the paths and hashes of all files of a folder."""
    if not source.is_dir():
        return file_hash(source)
    return digest_of([[str(member.path), file_hash(source / member.path)] for member in members(source)])
