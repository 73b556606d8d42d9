"""Sums as slow as on another network: the real sum, then the time that the stated model of ``network`` adds.

Blocking: the delay starts when the real sum is over, so the real time counts too. Overlapped: the bytes of
all parts share one wire, in turn, each part from the moment it is started; latencies run side by side (as in
LogGP). ``finish_sum`` returns when the last has arrived and the real sum is over, so what is computed meanwhile
is really hidden, and cutting a message into parts costs what it would: no latency more in a row. Numbers,
counts and bytes stay those of the real communicator, bit for bit. Broadcasts, gathers and barriers, which
the training loop does not use between evaluations of the test set, are not delayed.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic_ns, sleep

from apts_mpi.contracts import Communicator, Message
from apts_mpi.network import Network
from apts_mpi.parallel.serial import checked
from apts_mpi.parallel.wrapper import WrappedCommunicator

SLEEP_ABOVE = 2_000_000  # ns; a shorter wait, and the last half of this one, is spun: sleep wakes up to 0.1 ms late


def wait_until(moment: int, clock: Callable[[], int] = monotonic_ns, rest: Callable[[float], None] = sleep) -> None:
    """Return at ``moment`` (ns of the clock), not before."""
    while (left := moment - clock()) > 0:
        if left > SLEEP_ABOVE:
            rest((left - SLEEP_ABOVE / 2) * 1e-9)


class EmulatedCommunicator(WrappedCommunicator):
    """``contracts.Communicator`` whose sums take the time of ``network`` on top."""

    def __init__(
        self, inner: Communicator, network: Network, clock: Callable[[], int] = monotonic_ns, rest: Callable[[float], None] = sleep
    ) -> None:
        super().__init__(inner)
        self.network = network
        self._clock, self._rest = clock, rest
        self._free = self._arrived = clock()  # when the wire is free, and when all that was sent has arrived, ns

    def sum_(self, message: Message, vector: bool = True) -> None:
        """The sum, then its delay."""
        self.inner.sum_(message, vector)
        flat = checked(message)
        self._send(flat.nbytes(vector))
        self._receive()

    def start_sum(self, message: Message, start: int, stop: int) -> None:
        """Begin to sum a part; its bytes leave now, or when the wire is free."""
        self._send(checked(message).host[start:stop].nbytes)
        self.inner.start_sum(message, start, stop)

    def finish_sum(self, message: Message) -> None:
        """Scalars and flags follow; back when all has really arrived and would have on the network."""
        flat = checked(message)
        self._send(flat.nbytes(vector=False))
        self.inner.finish_sum(message)
        self._receive()

    def _send(self, nbytes: int) -> None:
        latency, on_wire = self.network.parts(nbytes)
        self._free = max(self._free, self._clock()) + round(1e9 * on_wire)
        self._arrived = max(self._arrived, self._free + round(1e9 * latency))

    def _receive(self) -> None:
        wait_until(self._arrived, self._clock, self._rest)
