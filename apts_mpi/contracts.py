"""What the rooms agree on: protocols, status words and the record of one outer iteration.

Rooms never import each other, but know one another through these names and meet in ``train``. Nothing here imports torch or MPI."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, device, dtype

    Real = TypeVar("Real", np.uint8, np.float32, np.float64)


class Status(Enum):
    """Why a run goes on or ended; numerical trouble is a status, never an exception."""

    RUNNING = "running"
    EPOCHS = "epochs done"
    ITERATIONS = "outer iterations done"
    SPENT = "gradient evaluations or reductions spent"
    TARGET_LOSS = "target loss reached"
    TARGET_ACCURACY = "target accuracy reached"
    GRADIENT = "gradient norm below its bound"
    STATIONARY = "stationary: the gradient is zero"
    CONVERGED = "converged: predicted decrease below rounding"
    RADIUS = "trust-region radius at its lower bound"
    WALL_TIME = "wall-time limit"
    NONFINITE = "too many non-finite trials in a row"
    INTERRUPTED = "stopped on request"


class Flag(IntEnum):
    """One cell each in the flags word of every message; a cell is the number of ranks that raised it."""

    STOP = 0  # the time that the settings allow is over
    INTERRUPT = 1  # a signal came, or the job ends soon: save and leave, to go on later
    SAVE = 2  # a checkpoint is due


Wishes = Callable[[], Iterable[Flag]]  # asked on every rank before a message leaves: the flags that this rank raises in it


def no_wishes() -> Iterable[Flag]:
    """Of those who never raise a flag."""
    return ()


# Behind the vector of a message: a lane of cells for each scalar, then a cell for each flag.
SCALARS = ("loss", "decrease", "length", "local_iters", "local_accepted", "local_converged", "gradient_samples", "value_samples")
DIGITS = 24  # of a scalar, to the base 256
LANE = DIGITS + 2  # cells of a scalar: digits, terms, values out of range
CHECKS = ("checksum", "norm bound")  # two scalars more where sums are checked, which TAIL leaves out
TAIL = LANE * len(SCALARS) + len(Flag)  # cells behind the vector


class Message(Protocol):
    """A planned, preallocated flat buffer: one vector, (n_params,) in the run's dtype and device, named scalars and a flags word.

    Scalars are float64 and summed exactly, so their sums depend neither on the order nor on the number of ranks.
    """

    vector: Tensor

    def put(self, name: str, values: Iterable[float]) -> None:
        """Set scalar ``name`` to the values of this rank's subdomains, one each."""

    def get(self, name: str) -> float:
        """The sum over all subdomains after ``Communicator.sum_``; nan if any value was not finite."""

    def raise_flag(self, flag: Flag) -> None:
        """Tell all ranks, with the next sum of this message."""

    def count(self, flag: Flag) -> int:
        """How many ranks raised ``flag`` before the last sum."""


class Communicator(Protocol):
    """The only way between ranks. Every method is collective: every rank calls it."""

    rank: int
    size: int
    host: str
    local_rank: int  # among the ranks of its node
    library: str  # name and version of the MPI library

    @property
    def bytes(self) -> int:
        """Payload bytes reduced so far, this rank."""

    @property
    def messages(self) -> int:
        """Large and small reductions so far, this rank."""

    def configure(self, reduction: str, count_limit: int, transport: str = "host") -> None:
        """How messages are summed from now on: ``auto``, ``mpi``, ``tree``; elements a call; by ``host``, ``device`` or ``nccl``."""

    def plan(self, n_params: int, dtype: dtype, device: device, scalars: Sequence[str]) -> Message:
        """Allocate a message once, before the loop."""

    def sum_(self, message: Message, vector: bool = True) -> None:
        """Replace the message by its sum over the ranks; ``vector=False`` sends scalars and flags alone."""

    def start_sum(self, message: Message, start: int, stop: int) -> None:
        """Begin to sum entries start..stop-1 of the vector, not to be touched before ``finish_sum``; the same ranges on all ranks."""

    def finish_sum(self, message: Message) -> None:
        """Sum scalars and flags too and wait for all: together with the ``start_sum`` of every entry this is ``sum_``."""

    def broadcast_(self, vector: Tensor, root: int = 0) -> None:
        """Overwrite ``vector`` (1-D, contiguous) by that of rank ``root``."""

    def share(self, text: str, root: int = 0) -> str:
        """The text of rank ``root``, on every rank."""

    def agree(self, what: str, text: str) -> None:
        """Raise on every rank, naming the ranks in the minority, unless ``text`` is the same on all."""

    def gather(self, values: Sequence[float]) -> list[list[float]]:
        """Each rank's float64 row, on every rank, in rank order."""

    def gather_text(self, text: str) -> list[str]:
        """Each rank's text, on every rank, in rank order."""

    def collect(self, row: NDArray[Real]) -> list[NDArray[Real]] | None:
        """Each rank's row, of one dtype on all, on rank 0 in rank order; None on the others. Rows may differ in length."""

    def barrier(self) -> None:
        """Wait for all."""


class Subdomain(Protocol):
    """One subdomain's share of the current data D: owned samples O_i, borrowed samples E_i; ``theta``, ``grad``: flat (n_params,) tensors.

    A value is a new 0-d float64 tensor on the device, for which nothing has waited; ``grad`` is overwritten with exactly its gradient.
    """

    size: int  # |O_i|

    @property
    def weight(self) -> float:
        """|O_i| / |D|."""

    def owned(self, theta: Tensor, grad: Tensor | None) -> Tensor:
        """sum_{O_i} loss / |D|: this subdomain's share of f(theta; D)."""

    def owned_in_parts(self, theta: Tensor, grad: Tensor, nbytes: int, ready: Callable[[int, int], None]) -> Tensor:
        """As ``owned``; calls ``ready(start, stop)``, alike on all ranks, in parts of ``nbytes`` or more that cover it, when final."""

    def local_from_owned(self, theta: Tensor, value: float, grad: Tensor, out: Tensor) -> Tensor:
        """f(theta; D_i) and its gradient into ``out``, from ``owned`` at the same theta: only E_i is evaluated."""

    def local(self, theta: Tensor, grad: Tensor | None) -> Tensor:
        """f(theta; D_i), the mean loss over O_i + E_i."""

    def cut(self, chunks: int) -> int:
        """Cut O_i into ``chunks`` pieces, E_i being one more if not empty; returns their number."""

    def owned_by_chunk(self, theta: Tensor, grad: Tensor, kept: Tensor) -> Tensor:
        """As ``owned``, keeping the mean gradient of chunk j in ``kept[j]``, kept being (chunks, n_params)."""

    def chunk_gradient(self, index: int, theta: Tensor, grad: Tensor) -> None:
        """Overwrite ``grad`` by the gradient of the mean loss over one chunk; nothing reaches the host, nor is it counted."""

    def place(self) -> Hashable | None:
        """Equal as long as the current samples lie at the same place in memory and are cut alike; None: they do not stay there."""

    def count_chunk(self, index: int) -> None:
        """Count one ``chunk_gradient``, whether it was called or replayed from a recording."""


class Objective(Protocol):
    """f(theta; D) of eq. (1), split into the subdomains that this rank carries."""

    n_params: int

    @property
    def subdomains(self) -> Sequence[Subdomain]:
        """In the order of their numbers."""

    @property
    def gradient_samples(self) -> int:
        """Samples whose gradient was evaluated so far on this rank."""

    @property
    def value_samples(self) -> int:
        """Samples whose loss alone was evaluated so far on this rank."""

    @property
    def batches(self) -> int:
        """Minibatches in an epoch; 1 for the full batch."""

    def select(self, epoch: int, batch: int) -> None:
        """Make D the minibatch ``batch`` of ``epoch``; a no-op for the full batch."""


class Timers(Protocol):
    """Named regions of wall time."""

    def __call__(self, region: str) -> AbstractContextManager[None]:
        """Time what runs inside."""

    def count(self, region: str, messages: int, nbytes: int) -> None:
        """Add messages and payload bytes to a region."""


@dataclass(frozen=True)
class StepInfo:
    """What one outer iteration did; returned by the solver, printed and stored by others."""

    k: int  # outer iteration, from 0
    epoch: int
    loss: float  # f(theta_k; D_k) before the step
    grad_norm: float  # ||grad f(theta_k; D_k)||
    rho: float  # ratio (6) of the summed local steps; trust-region: of its only step
    accepted: bool
    radius: float  # Delta that bounded the summed step
    step_norm: float  # ||s~||
    global_rho: float  # of the global step; nan without one
    global_accepted: bool
    global_radius: float  # Delta that bounded the global step
    local_iters: int  # over all subdomains
    local_accepted: int
    loss_new: float  # f(theta_{k+1}; D_k); nan if it was not evaluated
    gradient_samples: int  # gradient evaluations of this iteration, in samples, over all ranks
    value_samples: int
    reductions: int  # n-vector reductions of this iteration
    status: Status
    raised: frozenset[Flag] = frozenset()  # flags that some rank raised in this iteration


@dataclass
class State:
    """What a method remembers from one outer iteration to the next, besides theta: all that a bitwise resumption needs.

    Every entry is a tensor: 0-d float64 for a number, else of any shape. Tensors may be live: copy them before the next step.
    """

    shared: dict[str, Tensor] = field(default_factory=dict)  # the same on all ranks
    own: list[dict[str, Tensor]] = field(default_factory=list)  # of each subdomain of this rank, in the order of their numbers

    def part(self, name: str) -> dict[str, Tensor]:
        """The shared entries called ``name.``..., without it."""
        return {key.removeprefix(f"{name}."): value for key, value in self.shared.items() if key.startswith(f"{name}.")}
