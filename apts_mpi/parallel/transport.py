"""How the vector of a message on a GPU reaches the other ranks: staged on the host, by MPI from the device, or by NCCL.

Staged sums can be those of the fixed tree; the other two have the order of their library.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from hashlib import blake2b
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from apts_mpi.parallel.guard import waiting
from apts_mpi.parallel.handshake import HandshakeError, together
from apts_mpi.parallel.message import wait_for
from apts_mpi.parallel.reduce import MpiReducer, Reducer, trial_values

if TYPE_CHECKING:
    from torch import Tensor, device

    from apts_mpi.contracts import Communicator

T = TypeVar("T")

TRANSPORTS = ("host", "device", "nccl")
PATIENCE = 60.0  # s that the process may take which tries MPI on a device
LINKING = 120.0  # s that NCCL may take to link the ranks, as long as MPI may take to start
ROOM = 2**26  # bytes on the device, less than a link takes
# What launchers set for the ranks they start; a process without these is an MPI program of one rank.
LAUNCHED = (
    "PMI", "OMPI_COMM_", "OMPI_MCA_ess", "OMPI_MCA_pmix", "OMPI_MCA_orte_", "PRTE", "SLURM_", "HYDI_", "HYDRA_", "MPI_LOCAL", "PALS_",
    "FLUX_",
)  # fmt: skip
CRAY = "MPICH_GPU_SUPPORT_ENABLED"  # the job scripts set it to 0, for mpi4py without Cray's GTL library


class MpiDevice(MpiReducer):
    """MPI_Allreduce of device memory, after the stream that fills it has come to rest: MPI knows no streams."""

    name = "mpi on the device"

    def __call__(self, cells: Tensor) -> None:
        wait_for(cells.device)
        super().__call__(cells)


class Nccl:
    """ncclAllReduce on the current stream; MPI carries the identifier with which the ranks find each other.

    Every rank builds it, for messages on its ``device``. SetupError on all of them if one cannot. Where NCCL refuses one rank and leaves
    the others waiting for it, that rank says why, and all end after ``LINKING`` seconds.
    """

    name = "nccl"

    def __init__(self, comm: Communicator, device: device) -> None:
        from torch.cuda import nccl

        unique_id: Callable[[], bytes] = nccl.unique_id
        init_rank: Callable[[int, bytes, int], object] = nccl.init_rank

        def identifier() -> str:
            _make_room(device)
            return unique_id().hex() if comm.rank == 0 else ""

        def link() -> object:
            try:
                return init_rank(comm.size, bytes.fromhex(key), comm.rank)
            except RuntimeError as problem:
                sys.stderr.write(f"rank {comm.rank} on {comm.host}: NCCL cannot link the ranks: {problem}\n")
                sys.stderr.flush()
                raise

        key = comm.share(_linking(comm, identifier))
        with waiting(LINKING):
            self._link = _linking(comm, link)
        self._sum: Callable[..., object] = nccl.all_reduce

    def __call__(self, cells: Tensor) -> None:
        self._sum([cells], comms=[self._link])


def _make_room(device: device) -> None:
    """Fail here, where nobody waits in NCCL, if ``device`` is full or has had an error; and give back what torch keeps free, for NCCL."""
    import torch

    torch.empty(ROOM, dtype=torch.uint8, device=device)
    wait_for(device)
    torch.cuda.empty_cache()


def _linking(comm: Communicator, action: Callable[[], T]) -> T:
    """``together``, of what torch and NCCL refuse with a RuntimeError."""

    def tried() -> T:
        try:
            return action()
        except RuntimeError as problem:
            raise OSError(f"NCCL cannot link the ranks: {problem}; set comm.transport to host") from problem

    return together(comm, tried)


def check_sum(reducer: Reducer, host: Reducer, whole: Tensor, comm: Communicator) -> None:
    """Sum numbers that are known by both; HandshakeError on every rank unless ``reducer`` adds like ``host`` and gives all the same bits.

    ``whole``, the buffer on the device, is left full of zeros.
    """
    import torch

    mine = trial_values(len(whole), np.dtype(str(whole.dtype).removeprefix("torch.")), seed=comm.rank)
    wanted, sizes = mine.copy(), np.abs(mine)
    host(wanted)
    host(sizes)
    whole.copy_(torch.from_numpy(mine))
    reducer(whole)
    got = whole.cpu().numpy().copy()  # on a CPU too a copy: the buffer is cleared next
    whole.zero_()
    allowed = 2 * comm.size * np.finfo(got.dtype).eps * sizes
    wrong = int(np.count_nonzero(~(np.abs(got - wanted) <= allowed)))  # nan is wrong, too
    problems = comm.gather_text(f"{wrong} of {len(got)} entries are wrong" if wrong else "")
    if any(problems):
        words = next(f"rank {rank}: {problem}" for rank, problem in enumerate(problems) if problem)
        raise HandshakeError(f"a sum by {reducer.name} is no sum, {words}; set comm.transport to host")
    comm.agree(f"sum by {reducer.name}", blake2b(got.tobytes(), digest_size=8).hexdigest())


def choose_transport(wanted: str, comm: Communicator, device: device, share_gpu: bool = False) -> tuple[str, str]:
    """host, device or nccl for ``wanted`` (auto: the device if MPI can, else the host), and why auto is the host; every rank calls.

    HandshakeError on every rank, with what is missing and where, if one of them cannot do what was asked for.
    """
    if wanted == "host" or comm.size == 1 or (wanted == "auto" and device.type != "cuda"):
        return "host", ""
    name = "device" if wanted == "auto" else wanted
    found = comm.gather_text(lacking(name, device, share_gpu))
    problems = [f"rank {rank}: {words}" for rank, words in enumerate(found) if words]
    if not problems:
        return name, ""
    if wanted != "auto":
        raise HandshakeError(f"comm.transport = {wanted} cannot be had, {problems[0]}; set comm.transport to host")
    return "host", f"comm.transport = auto is host, {problems[0]}"


def lacking(name: str, device: device, share_gpu: bool = False) -> str:
    """Why this rank cannot sum by ``name``; empty if it can, as far as can be known before."""
    import torch

    if name == "host":
        return ""
    if device.type != "cuda":
        return "it computes on a CPU"
    if name == "device":
        return probe(str(device))
    if share_gpu:
        return "NCCL needs a GPU for each rank, and run.share_gpu is true"
    return "" if hasattr(torch._C, "_nccl_all_reduce") else "this torch was built without NCCL"


def probe(where: str) -> str:
    """Let another process sum a vector on device ``where`` by MPI, since one that cannot may crash; empty if the sum was right."""
    around = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHED)}
    command = [sys.executable, "-m", "apts_mpi.parallel.gpu_aware", where]
    try:
        tried = subprocess.run(command, env=around, stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE, check=False)
    except (OSError, subprocess.TimeoutExpired) as problem:
        return f"trying MPI on {where}: {problem}"
    if tried.returncode == 0:
        return ""
    said = tried.stderr.decode(errors="replace").strip().splitlines()
    ended = f"signal {-tried.returncode}" if tried.returncode < 0 else f"exit code {tried.returncode}"
    if around.get(CRAY) == "0":
        ended += f", {CRAY} is 0"
    return f"MPI could not sum a vector on {where} ({ended}{', ' + said[-1] if said else ''})"
