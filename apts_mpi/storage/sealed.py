"""HDF5 files with a seal: size and SHA-256 of everything are checked before HDF5 sees one byte.

HDF5 lets programs keep the first 512 bytes of a file for themselves (the user block). Ours are
text: what the file is, and size and SHA-256 of the HDF5 file behind them. Any HDF5 reader opens
such a file, and ``head -c 512 FILE`` shows the seal.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py

from apts_mpi.regular import AGAIN, DataError, open_regular
from apts_mpi.storage.plain import FILE_BYTES, reading, write_atomic

BLOCK = 512  # bytes of the user block, the smallest that HDF5 has
MARK = b"apts-mpi sealed HDF5 file"
SIGNATURE = b"\x89HDF\r\n\x1a\n"
_TEXT = "{mark}, version 1\nThe HDF5 file begins at byte {block}; every HDF5 reader opens it.\nbytes {size}\nsha256 {sha}\n"
_SEAL = re.compile(rb"\nbytes ([0-9]{1,18})\nsha256 ([0-9a-f]{64})\n")


def new_file(image: io.BytesIO) -> h5py.File:
    """An HDF5 file to fill in memory, with room for the seal: it meets no disk, so a full one is an ordinary OSError later."""
    return h5py.File(image, "w", userblock_size=BLOCK)


def write_sealed(path: Path, image: io.BytesIO) -> tuple[int, str]:
    """Seal ``image``, a closed file from ``new_file``, and replace ``path`` by it as a whole.

    Returns bytes and SHA-256 of the whole file; OSError names ``path``.
    """
    with image.getbuffer() as whole:
        assert whole[BLOCK : BLOCK + len(SIGNATURE)] == SIGNATURE, "the image needs a user block"
        whole[:BLOCK] = _seal(len(whole) - BLOCK, hashlib.sha256(whole[BLOCK:]).hexdigest())
        write_atomic(path, whole)
        return len(whole), hashlib.sha256(whole).hexdigest()


@contextmanager
def open_sealed(path: Path, limit: int = FILE_BYTES) -> Iterator[h5py.File]:
    """A sealed file of at most ``limit`` bytes for reading, after its seal and ``check_plain``, without a lock.

    OSError or DataError name the file, also when reading fails inside.
    """
    with open_regular(path, limit) as handle:
        _check(path, handle)
        with reading(path, handle) as file:
            if file.userblock_size != BLOCK:
                raise DataError(f"{path}: its HDF5 file does not begin at byte {BLOCK}; {AGAIN}")
            yield file


def is_sealed(path: Path) -> bool:
    """Whether the file says that it has a seal; OSError or DataError name the file."""
    with open_regular(path, FILE_BYTES) as handle:
        return handle.read(len(MARK)) == MARK


def _seal(size: int, sha: str) -> bytes:
    return _TEXT.format(mark=MARK.decode(), block=BLOCK, size=size, sha=sha).encode().ljust(BLOCK - 1) + b"\n"


def _check(path: Path, handle: io.BufferedReader) -> None:
    """Raise DataError unless the seal is whole and true of what follows."""
    block = handle.read(BLOCK)
    found = _SEAL.search(block)
    if not found or block != _seal(int(found[1]), found[2].decode()):
        raise DataError(f"{path}: has no seal of apts-mpi, or a damaged one; {AGAIN}")
    size = os.fstat(handle.fileno()).st_size - BLOCK
    if size != int(found[1]):
        raise DataError(f"{path}: its seal speaks of {found[1].decode()} bytes, {size} are there; {AGAIN}")
    if hashlib.file_digest(handle, "sha256").hexdigest() != found[2].decode():
        raise DataError(f"{path}: its SHA-256 is not the one in its seal, it is damaged; {AGAIN}")
    handle.seek(BLOCK)
    if handle.read(len(SIGNATURE)) != SIGNATURE:
        raise DataError(f"{path}: holds no HDF5 file at byte {BLOCK}; {AGAIN}")
    handle.seek(0)
