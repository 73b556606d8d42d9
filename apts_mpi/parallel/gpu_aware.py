"""``python -m apts_mpi.parallel.gpu_aware DEVICE``: exit code 0 if MPI sums a vector there; to be tried in a process of its own."""

from __future__ import annotations

import sys

LENGTH = 100_000  # float32: longer than what an MPI library copies by way of its own buffers
WRONG = 3


def main(where: str) -> int:
    """Sum a vector over the one rank there is, from one buffer to another."""
    import torch
    from mpi4py import MPI

    from apts_mpi.parallel.message import wait_for

    device = torch.device(where)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # a tensor of another one cannot be handed over
    sent = torch.arange(LENGTH, dtype=torch.float32, device=device)
    got = torch.zeros_like(sent)
    wait_for(device)
    MPI.COMM_SELF.Allreduce(sent, got)
    return 0 if torch.equal(sent, got) else WRONG


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
