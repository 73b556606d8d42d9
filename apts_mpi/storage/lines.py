"""A text file that grows by whole lines, whatever the disk does meanwhile: nothing is lost while the process lives."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable
from pathlib import Path
from time import monotonic

from apts_mpi.regular import naming
from apts_mpi.storage.plain import write_atomic

LOOK = 1.0  # s between two looks whether the file is still there


class Lines:
    """The file ``path``, opened with exactly ``text`` in it (whole lines)."""

    def __init__(self, path: Path, text: bytes = b"") -> None:
        self.path = path
        self._pending: list[bytes] = []  # lines not on disk yet
        if text or path.exists():
            _cut(path, text)
        with naming(path):
            self._file = io.FileIO(path, "r+" if text or path.exists() else "x+")
        self._good = self._file.seek(0, os.SEEK_END)  # bytes of whole lines on disk
        self._looked = monotonic()

    def add(self, line: bytes) -> None:
        """Take a line, or several; ``flush`` writes them."""
        self._pending.append(line)

    def text(self) -> bytes:
        """All lines so far, on disk or not; OSError names the file."""
        return self.later()()

    def later(self) -> Callable[[], bytes]:
        """A function that gives all lines of this moment, once, and may read them in another thread; OSError names the file."""
        good, pending = self._good, b"".join(self._pending)
        try:
            own: io.FileIO | OSError = io.FileIO(os.dup(self._file.fileno()), "rb")  # the other may be closed before it is read
        except OSError as error:
            own = OSError(error.errno, error.strerror, str(self.path))  # for who reads: the lines are not lost

        def read() -> bytes:
            if isinstance(own, OSError):
                raise own
            with own:
                return _read(self.path, own, good) + pending

        return read

    def flush(self, look: bool = False) -> bool:
        """Write what is pending, all or nothing; whether the file had to be made anew. OSError names it and loses nothing.

        Whether the file still has its name is looked at once in a while, or when told.
        """
        anew = (look or monotonic() - self._looked >= LOOK) and not self._there() and self._anew()
        data = b"".join(self._pending)
        with naming(self.path):
            try:
                written = self._file.write(data)
                if written != len(data):
                    written += self._file.write(data[written:])  # says why it stopped
            except OSError:
                self._file.truncate(self._good)  # no half line stays behind
                self._file.seek(self._good)
                raise
        self._good += len(data)
        self._pending.clear()
        return anew

    def sync(self) -> None:
        """Force what was written to the disk; OSError names the file."""
        with naming(self.path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close; harmless a second time."""
        self._file.close()

    def _there(self) -> bool:
        """Whether the name leads to the open file."""
        try:
            same = os.path.samestat(os.stat(self.path), os.fstat(self._file.fileno()))
        except OSError:
            return False
        if same:
            self._looked = monotonic()  # else the next flush looks again
        return same

    def _anew(self) -> bool:
        """The folder was removed or replaced: everything goes into a new file, once there is a folder again."""
        if not self.path.parent.is_dir():
            raise OSError(errno.ENOENT, "its folder is gone", str(self.path))
        write_atomic(self.path, _read(self.path, self._file, self._good))
        with naming(self.path):
            file = io.FileIO(self.path, "r+")
        file.seek(0, os.SEEK_END)
        self._file.close()
        self._file, self._looked = file, monotonic()
        return True


def _read(path: Path, file: io.FileIO, size: int) -> bytes:
    """The first bytes of an open file, which is still there when its name is not."""
    pieces, done = [], 0
    with naming(path):
        while done < size:
            piece = os.pread(file.fileno(), size - done, done)
            if not piece:
                raise OSError(errno.EIO, "has become shorter", str(path))
            pieces.append(piece)
            done += len(piece)
    return b"".join(pieces)


def _cut(path: Path, text: bytes) -> None:
    """Make ``path`` hold ``text``: by cutting off what follows it, or as a new file."""
    with naming(path):
        if path.is_symlink() or not path.is_file():
            same = False
        else:
            with path.open("rb") as handle:
                same = handle.read(len(text)) == text
        if same and path.stat().st_size > len(text):
            os.truncate(path, len(text))
    if not same:
        write_atomic(path, text)
