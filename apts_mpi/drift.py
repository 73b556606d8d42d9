"""Do all ranks still have the same theta and the same numbers of the method? If not, who differs, and what then."""

from __future__ import annotations

from collections import Counter
from hashlib import sha256

from torch import Tensor

from apts_mpi.contracts import Communicator, State
from apts_mpi.parallel.handshake import HandshakeError
from apts_mpi.solver.build import Resumable, Stepper
from apts_mpi.spread import copied, spread


def fingerprint(theta: Tensor, state: State) -> str:
    """SHA-256 of the bytes of theta and of what becomes theta, and of the numbers (0-d entries) that the method shares.

    One copy of each vector to the host on a GPU.
    """
    digest = sha256(theta.detach().cpu().numpy().data)
    for name in ("mean", "momentum.last"):  # what a run has to show for itself; what goes into the next step
        if name in state.shared:
            digest.update(state.shared[name].detach().cpu().numpy().data)
    for name, value in sorted(state.shared.items()):
        if value.dim() == 0:
            digest.update(f"{name}={float(value).hex()}".encode())
    return digest.hexdigest()


def minority(comm: Communicator, theta: Tensor, state: State) -> tuple[list[int], int | None]:
    """The ranks that differ from most, and one rank of the majority: None if no half is larger. Every rank calls.

    Where there is no majority, as with two ranks, all are named.
    """
    prints = comm.gather_text(fingerprint(theta, state))
    most, count = Counter(prints).most_common(1)[0]
    if count == len(prints):
        return [], 0
    if 2 * count <= len(prints):
        return list(range(len(prints))), None
    return [rank for rank, text in enumerate(prints) if text != most], prints.index(most)


def check(comm: Communicator, stepper: Stepper, heal: bool, iterations: int) -> str:
    """Compare all ranks after ``iterations`` outer iterations; empty if they are alike, else what was mended. Every rank calls.

    With ``heal`` the minority takes over theta and the shared state of the majority; what it added to the sums since the last
    comparison stays in them. Raises HandshakeError on every rank, naming the minority, without ``heal`` or without a majority.
    """
    state = stepper.state() if isinstance(stepper, Resumable) else State()
    ranks, healthy = minority(comm, stepper.theta, state)
    if not ranks:
        return ""
    hosts = comm.gather_text(comm.host)
    named = ", ".join(f"{rank} on {hosts[rank]}" for rank in ranks[:8]) + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")
    if healthy is None:
        raise HandshakeError(f"after iteration {iterations} theta differs between the ranks and no majority agrees: {named}")
    words = f"after iteration {iterations} theta of rank {named} is not that of the {comm.size - len(ranks)} others"
    if not heal or not isinstance(stepper, Resumable):
        raise HandshakeError(f"{words}; memory or a processor is at fault there: look at it, then go on from the last checkpoint")
    _take_over(comm, stepper, copied(state), healthy)
    return f"{words}; it was given theirs (safety.on_difference = heal)"


def _take_over(comm: Communicator, stepper: Resumable, state: State, healthy: int) -> None:
    """Give every rank theta and the shared state of rank ``healthy``; every rank calls."""
    comm.broadcast_(stepper.theta, healthy)
    stepper.restore_(State(spread(comm, state.shared, healthy), state.own))
    stepper.recall_()
