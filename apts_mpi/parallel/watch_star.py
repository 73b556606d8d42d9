"""The watchdog's star of TCP connections from every rank to rank 0, beside MPI.

A connection that does not begin with the token of this run is closed. The token crosses the network in the clear:
it keeps out strays, and whoever has it can end the run, no more.
"""

from __future__ import annotations

import hmac
import secrets
import socket
import struct
import time
from collections.abc import Iterator, Sequence

from apts_mpi.parallel.watch_net import COMMAND, RECORD, STACKS_MOST, Beat, Kind, Line, Net, News

MAGIC = b"aptswd01"
HELLO = struct.Struct("!8s16sII64s")  # magic, token, rank, pid, host
PATIENCE = 5.0  # s for a connection to be made and to say who it is
STRANGERS = 16  # connections beyond the ranks' that may be at that


class Star(Net):
    """Rank 0's end: takes connections of the other ranks. OSError if it cannot listen."""

    def __init__(self, size: int, loopback: bool) -> None:
        super().__init__()
        self.token, self._size = secrets.token_bytes(16), size
        self._listener = socket.create_server(("127.0.0.1" if loopback else "", 0), backlog=min(size + STRANGERS, 4096))
        self._listener.setblocking(False)
        self.watch(self._listener)
        self.port = int(self._listener.getsockname()[1])
        self._strangers: dict[socket.socket, tuple[Line, float]] = {}
        self._ranks: dict[socket.socket, tuple[Line, int]] = {}
        self._wires: dict[int, socket.socket] = {}  # the same the other way round

    def turn(self, seconds: float) -> list[News]:
        """Wait for at most ``seconds`` for something to come; what came."""
        ready = self.ready(seconds)
        for line, _ in list(self._ranks.values()):
            line.send()
        news: list[News] = []
        for wire in ready:
            if wire is self._listener:
                self._accept()
            elif wire in self._strangers:
                assert isinstance(wire, socket.socket)
                news += self._introduced(wire)
            elif wire in self._ranks:
                assert isinstance(wire, socket.socket)
                news += self._heard(wire)
        for wire, (_, until) in list(self._strangers.items()):
            if time.monotonic() > until:
                self._refuse(wire)
        return news

    def send(self, kind: Kind, number: int = 0, rank: int | None = None) -> None:
        """A command to one rank, or to all that are connected."""
        for other in self._wires if rank is None else [rank] if rank in self._wires else []:
            self._ranks[self._wires[other]][0].send(COMMAND.pack(kind, number))

    def hang_up(self, rank: int) -> None:
        """Close the connection of a rank that has said goodbye."""
        if rank in self._wires:
            self._forget(self._wires[rank], rank)

    @property
    def connected(self) -> set[int]:
        """The ranks at the other ends."""
        return set(self._wires)

    def _accept(self) -> None:
        """All who have come since the last look."""
        while True:
            try:
                wire, _ = self._listener.accept()
            except OSError:  # nobody else, or no descriptor left
                return
            if len(self._strangers) >= self._size + STRANGERS:
                wire.close()
                continue
            self.watch(wire)
            self._strangers[wire] = Line(wire), time.monotonic() + PATIENCE

    def _forget(self, wire: socket.socket, rank: int) -> None:
        del self._ranks[wire], self._wires[rank]
        self.drop(wire)

    def _introduced(self, wire: socket.socket) -> Iterator[News]:
        line, _ = self._strangers[wire]
        line.fill()
        data = line.take(HELLO.size)
        if data is None:
            if line.closed:
                self._refuse(wire)
            return
        magic, token, rank, pid, host = HELLO.unpack(data)
        known = hmac.compare_digest(token, self.token) and magic == MAGIC
        if not known or not 0 < rank < self._size or rank in self._wires:
            self._refuse(wire)
            return
        del self._strangers[wire]
        self._ranks[wire], self._wires[rank] = (line, rank), wire
        if len(self._ranks) == self._size - 1:
            self.drop(self._listener)  # nobody comes twice
        line.send(COMMAND.pack(Kind.HELLO, 0))
        yield News(rank, Kind.HELLO, text=host.rstrip(b"\0").decode(errors="replace"), number=pid)
        yield from self._heard(wire)

    def _refuse(self, wire: socket.socket) -> None:
        del self._strangers[wire]
        self.drop(wire)

    def _heard(self, wire: socket.socket) -> Iterator[News]:
        """The records that are whole; the last one says that the connection is closed, if it is."""
        line, rank = self._ranks[wire]
        line.fill()
        while found := line.record():
            yield News(rank, *found)
        if line.closed and wire in self._ranks:
            self._forget(wire, rank)
            yield News(rank, Kind.CLOSED)


class Ray(Net):
    """The end of another rank. OSError if rank 0 cannot be reached at any of ``addresses`` or does not welcome this rank."""

    def __init__(self, addresses: Sequence[str], port: int, token: bytes, rank: int, pid: int, host: str) -> None:
        super().__init__()
        try:
            wire = _reach(addresses, port)
            self.watch(wire)
            wire.settimeout(PATIENCE)
            wire.sendall(HELLO.pack(MAGIC, token, rank, pid, host.encode()[:64]))
            welcome = wire.recv(COMMAND.size, socket.MSG_WAITALL)
        except OSError:
            self.close()
            raise
        if welcome != COMMAND.pack(Kind.HELLO, 0):
            self.close()
            raise ConnectionError("rank 0 closed the connection")
        self._line = Line(wire)

    def turn(self, seconds: float) -> list[tuple[Kind, int]]:
        """Wait for at most ``seconds`` for commands; what came, CLOSED last."""
        line, found = self._line, list[tuple[Kind, int]]()
        if self.ready(seconds) and not line.closed:
            line.fill()
        line.send()
        while data := line.take(COMMAND.size):
            kind, number = COMMAND.unpack(data)
            if kind in list(Kind):
                found.append((Kind(kind), number))
        if line.closed:
            self.hang_up()
            found.append((Kind.CLOSED, 0))
        return found

    def hang_up(self) -> None:
        """Close the connection; the bell stays."""
        if self._line.wire in self._open:
            self.drop(self._line.wire)
        self._line.closed = True

    def send(self, kind: Kind, beat: Beat) -> None:
        """A record."""
        self._line.send(RECORD.pack(kind, *beat))

    def send_stacks(self, text: str) -> None:
        """The answer to STACKS, cut to its most."""
        data = text.encode(errors="replace")[:STACKS_MOST]
        self._line.send(RECORD.pack(Kind.STACKS, 0, 0, len(data), 0, 0) + data)


def _reach(addresses: Sequence[str], port: int) -> socket.socket:
    """A connection to the first address that answers."""
    trouble: OSError = ConnectionError("rank 0 named no address")
    for address in addresses:
        try:
            return socket.create_connection((address, port), timeout=PATIENCE / len(addresses))
        except OSError as error:
            trouble = error
    raise trouble


def own_addresses() -> list[str]:
    """IPv4 addresses under which other hosts may reach this one, the likeliest first."""
    found: dict[str, None] = {}
    try:
        found |= dict.fromkeys(str(info[4][0]) for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET))
    except OSError:
        pass  # a host without a name that can be looked up
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("10.255.255.255", 9))  # sends nothing: asks for the address towards other hosts
            found[str(probe.getsockname()[0])] = None
        except OSError:
            pass  # no route
    return [address for address in found if not address.startswith("127.")]
