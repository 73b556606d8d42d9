"""The watchdog's wires: records of a fixed size over connections that never block.

Nothing that comes in is trusted: records have a fixed size, stacks a stated most, and nonsense closes the connection.
"""

from __future__ import annotations

import selectors
import socket
import struct
from enum import IntEnum
from typing import NamedTuple

RECORD = struct.Struct("!BBBxQQQ")  # Kind, phase, verb, entered, left, progress
COMMAND = struct.Struct("!BxxxQ")  # Kind, number
STACKS_MOST = 65_536  # bytes of a rank's stacks


class Kind(IntEnum):
    """What a record or a command says."""

    BEAT = 1  # to rank 0: where I am; from rank 0: I have heard you
    GOODBYE = 2  # I leave in good order, after ``entered`` (number) verbs
    ABORTING = 3  # I have told what is wrong and am about to end all ranks
    STACKS = 4  # to rank 0: ``entered`` bytes of text follow; from rank 0: send them
    HELLO = 5  # from rank 0: welcome
    CLOSED = 6  # never sent: the connection is closed


class Beat(NamedTuple):
    """Where a rank is."""

    phase: int = 0
    verb: int = 0  # number of the verb's name
    entered: int = 0
    left: int = 0
    progress: int = 0

    @property
    def inside(self) -> bool:
        """Whether it is inside a collective verb."""
        return self.entered != self.left


class News(NamedTuple):
    """Something from a rank."""

    rank: int
    kind: Kind
    beat: Beat = Beat()
    text: str = ""  # host of HELLO, text of STACKS
    number: int = 0  # pid of HELLO


class Line:
    """One connection that never blocks: bytes that came in, bytes still to go out."""

    def __init__(self, wire: socket.socket) -> None:
        wire.setblocking(False)
        self.wire, self.closed = wire, False
        self._came, self._going = bytearray(), bytearray()

    def fill(self) -> None:
        """Read what is there, at most a whole record of the longest kind at a time."""
        try:
            data = self.wire.recv(STACKS_MOST + RECORD.size)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        self._came += data
        self.closed |= not data

    def take(self, size: int) -> bytes | None:
        """The next ``size`` bytes if they are there."""
        if len(self._came) < size:
            return None
        data = bytes(self._came[:size])
        del self._came[:size]
        return data

    def record(self) -> tuple[Kind, Beat, str] | None:
        """The next record if it is there whole; nonsense closes the connection."""
        if len(self._came) < RECORD.size:
            return None
        kind, *numbers = RECORD.unpack_from(self._came)
        beat = Beat(*numbers)
        length = beat.entered if kind == Kind.STACKS else 0
        if kind not in (Kind.BEAT, Kind.GOODBYE, Kind.ABORTING, Kind.STACKS) or length > STACKS_MOST:
            self.closed = True
            self._came.clear()
            return None
        data = self.take(RECORD.size + length)
        return data and (Kind(kind), beat, data[RECORD.size :].decode(errors="replace"))  # type: ignore[return-value]

    def send(self, data: bytes = b"") -> None:
        """Send ``data`` and what is left of earlier calls, as far as it goes now; one who does not read loses the connection."""
        self._going += data
        if not self._going:
            return
        try:
            del self._going[: self.wire.send(self._going)]
        except (BlockingIOError, InterruptedError):
            self.closed |= len(self._going) > 16 * STACKS_MOST
        except OSError:
            self.closed = True


class Net:
    """Connections, and a bell by which another thread ends the waiting for them."""

    def __init__(self) -> None:
        self._ear, self._bell = socket.socketpair()
        self._ear.setblocking(False)
        self._bell.setblocking(False)
        self._open: list[socket.socket] = [self._ear, self._bell]
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._ear, selectors.EVENT_READ)

    def ring(self) -> None:
        """End the present or next ``ready``; from any thread."""
        try:
            self._bell.send(b"!")
        except OSError:  # rung often enough, or closed
            return

    def ready(self, seconds: float) -> list[object]:
        """What of the registered has something to read, after at most ``seconds``."""
        found = [key.fileobj for key, _ in self._selector.select(max(0.0, seconds))]
        if self._ear in found:
            found.remove(self._ear)
            self._ear.recv(4096)
        return list(found)

    def watch(self, wire: socket.socket) -> None:
        """Listen to ``wire`` and close it with the rest."""
        self._open.append(wire)
        self._selector.register(wire, selectors.EVENT_READ)

    def drop(self, wire: socket.socket) -> None:
        """Close one."""
        self._selector.unregister(wire)
        self._open.remove(wire)
        wire.close()

    def close(self) -> None:
        """Close all; also in a forked child, whose parent's connections stay."""
        self._selector.close()
        for wire in self._open:
            wire.close()
        self._open.clear()
