"""How the vector of a message on a GPU reaches the other ranks: staged on the host, by MPI from the device, or by NCCL.

Staged sums can be those of the fixed tree; the other two have the order of their library.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import numpy as np

from apts_mpi.parallel.handshake import HandshakeError, TextGatherer
from apts_mpi.parallel.message import wait_for

if TYPE_CHECKING:
    from mpi4py import MPI
    from torch import Tensor, device

TRANSPORTS = ("host", "device", "nccl")
PATIENCE = 60.0  # s that the process may take which tries MPI on a device
# What launchers set for the ranks they start; a process without these is an MPI program of one rank.
LAUNCHED = ("PMI", "OMPI_COMM_", "PRTE", "SLURM_", "HYDI_", "HYDRA_", "MPI_LOCAL", "PALS_", "FLUX_")
NCCL_ID = 128  # bytes of ncclUniqueId


class DeviceReducer(Protocol):
    """Sums in place what lies on a device; every rank calls."""

    name: str

    def __call__(self, cells: Tensor) -> None:
        """Replace ``cells`` (1-D, contiguous) by their sum over the ranks, behind the current stream."""


class MpiDevice:
    """MPI_Allreduce of device memory in pieces, after the stream that fills it has come to rest: MPI knows no streams."""

    name = "mpi on the device"

    def __init__(self, comm: MPI.Intracomm, count_limit: int) -> None:
        from mpi4py import MPI

        self._comm, self._limit, self._in_place = comm, count_limit, MPI.IN_PLACE

    def __call__(self, cells: Tensor) -> None:
        wait_for(cells.device)
        for start in range(0, len(cells), self._limit):
            self._comm.Allreduce(self._in_place, cells[start : start + self._limit])


class Nccl:
    """ncclAllReduce on the current stream; MPI carries the identifier with which the ranks find each other. Collective to build."""

    name = "nccl"

    def __init__(self, comm: MPI.Intracomm) -> None:
        from torch.cuda import nccl

        unique_id: Callable[[], bytes] = nccl.unique_id
        init_rank: Callable[[int, bytes, int], object] = nccl.init_rank
        key = np.zeros(NCCL_ID, np.uint8)
        if comm.Get_rank() == 0:
            key[:] = np.frombuffer(unique_id(), np.uint8)
        comm.Bcast(key, root=0)
        self._link = init_rank(comm.Get_size(), key.tobytes(), comm.Get_rank())
        self._sum: Callable[..., object] = nccl.all_reduce

    def __call__(self, cells: Tensor) -> None:
        self._sum([cells], comms=[self._link])


def choose_transport(wanted: str, comm: TextGatherer, device: device, share_gpu: bool = False) -> str:
    """host, device or nccl for ``wanted`` (or auto: the device if MPI can, else the host); every rank calls.

    HandshakeError on every rank, with what is missing and where, if one of them cannot do what was asked for.
    """
    if wanted == "host" or (wanted == "auto" and device.type != "cuda"):
        return "host"
    name = "device" if wanted == "auto" else wanted
    found = comm.gather_text(lacking(name, device, share_gpu))
    problems = [f"rank {rank}: {words}" for rank, words in enumerate(found) if words]
    if problems and wanted != "auto":
        raise HandshakeError(f"comm.transport = {wanted} cannot be had, {problems[0]}; set comm.transport to host")
    return "host" if problems else name


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
    return f"MPI could not sum a vector on {where} ({ended}{', ' + said[-1] if said else ''})"
