"""torch's process group beside our communicator, for the programs that measure DistributedDataParallel."""

from __future__ import annotations

import os
import socket

import torch
import torch.distributed as dist

from apts_mpi.contracts import Communicator
from apts_mpi.parallel.handshake import SetupError

HERE = "127.0.0.1"


def connect(comm: Communicator, device: torch.device) -> str:
    """Start torch's process group of the same ranks, over a port that rank 0 has found free; returns its backend.

    gloo, or nccl if ``device``, this rank's, is a GPU. Every rank calls. SetupError on every rank if they are on several nodes.
    """
    if len(set(comm.gather_text(comm.host))) > 1:
        raise SetupError(f"DistributedDataParallel meets at {HERE} here, so its ranks must be on one node", usage=True)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    backend = "nccl" if device.type == "cuda" else "gloo"
    port = comm.share(free_port() if comm.rank == 0 else "")
    dist.init_process_group(backend, init_method=f"tcp://{HERE}:{port}", rank=comm.rank, world_size=comm.size)
    return backend


def free_port() -> str:
    """A port of this machine that nobody listens on now."""
    with socket.socket() as found:
        found.bind((HERE, 0))
        return str(found.getsockname()[1])
