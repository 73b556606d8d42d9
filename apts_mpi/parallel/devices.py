"""Which GPU and how many threads a rank takes, decided together with the ranks on the same node."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from apts_mpi.parallel.handshake import HandshakeError, TextGatherer

if TYPE_CHECKING:
    from torch import device

ALLOTTED = "SLURM_GPUS_ON_NODE"  # how many the job has here


class Neighbour(TextGatherer, Protocol):
    """A communicator that knows its place on the node."""

    @property
    def local_rank(self) -> int:
        """This rank's number among the ranks of its node."""


def choose_device(wanted: str, comm: Neighbour, share_gpu: bool = False) -> device:
    """The torch device of this rank for ``wanted`` = auto, cpu or cuda; every rank calls.

    One visible GPU is taken as it is (the launcher has bound it), of several the one of the local rank.
    HandshakeError on every rank if some rank sees no GPU, or if two ranks meet on one (told by UUID)
    and ``share_gpu`` is off.
    """
    import torch

    if wanted == "cpu":
        return torch.device("cpu")
    gpus = visible_gpus()
    index = comm.local_rank % len(gpus) if gpus else 0
    seen = comm.gather_text(f"{comm.host} {gpus[index]}" if gpus else "")
    if wanted == "auto" and not any(seen):
        return torch.device("cpu")
    problem = misplaced(seen, share_gpu)
    if problem:
        raise HandshakeError(problem)
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def sharers(gpu: device, comm: TextGatherer) -> int:
    """How many ranks compute on this rank's ``gpu``; every rank calls."""
    seen = f"{comm.host} {visible_gpus()[gpu.index]}"
    return comm.gather_text(seen).count(seen)


def visible_gpus() -> list[str]:
    """UUIDs of the GPUs that torch sees, by index; creates no context."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [str(getattr(torch.cuda.get_device_properties(index), "uuid", index)) for index in range(count)]


def misplaced(seen: Sequence[str], share_gpu: bool) -> str:
    """What is wrong with GPUs ``seen`` by the ranks (host and UUID, empty without one); empty if nothing is."""
    without = [str(rank) for rank, gpu in enumerate(seen) if not gpu]
    if without:
        return f"run.device asks for a GPU, but torch sees none on rank {', '.join(without)}; set run.device to cpu or start fewer ranks"
    sharing = {gpu: [str(rank) for rank, other in enumerate(seen) if other == gpu] for gpu in seen}
    crowded = [f"ranks {', '.join(ranks)} on {gpu}" for gpu, ranks in sharing.items() if len(ranks) > 1]
    if crowded and not share_gpu:
        return f"several ranks share a GPU: {'; '.join(crowded)}; start one rank per GPU, or set run.share_gpu to true"
    return ""


def set_threads(wanted: int, comm: TextGatherer, environ: Mapping[str, str] = os.environ) -> int:
    """Set and return torch's threads: ``wanted``, else OMP_NUM_THREADS, else a fair share of the cores; every rank calls.

    Ranks that the launcher bound to cores of their own keep these; ranks that may run on the same cores divide them.
    """
    import torch

    cores = affinity()
    sharing = comm.gather_text(f"{comm.host} {cores}").count(f"{comm.host} {cores}")
    asked = environ.get("OMP_NUM_THREADS", "").split(",")[0]
    if wanted < 1 and asked.isdigit():
        wanted = int(asked)
    if wanted < 1:
        wanted = max(1, min(torch.get_num_threads(), len(cores)) // sharing)
    torch.set_num_threads(wanted)
    return wanted


def crowds(comm: Neighbour, threads: int) -> list[tuple[str, int, int]]:
    """Hosts with fewer cores than threads of ranks: their name, ranks and cores; every rank calls."""
    seen = [json.loads(text) for text in comm.gather_text(json.dumps([comm.host, affinity()]))]
    found = []
    for host in sorted({name for name, _ in seen}):
        ranks = sum(name == host for name, _ in seen)
        cores = len({core for name, own in seen for core in own if name == host})
        if ranks * threads > cores:
            found.append((host, ranks, cores))
    return found


def allotted_gpus(environ: Mapping[str, str] = os.environ) -> str:
    """The variable by which Slurm says that this job has GPUs on this node, with its value; empty if it has none."""
    count = environ.get(ALLOTTED, "")
    return "" if count in ("", "0") else f"{ALLOTTED} = {count}"


def affinity() -> list[int]:
    """The cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))
