"""Faults in the middle of a run under mpiexec: one rank's device is full, or its results are no numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
from launch_cases import failed, needs_mpiexec, run

pytestmark = needs_mpiexec

TRAINING = """
    import torch
    from torch import nn
    from apts_mpi import train

    x, y = torch.randn(120, 4, generator=torch.Generator().manual_seed(0)), torch.arange(120) % 3
    comm = start()

    class Faulty(nn.Linear):
        calls = 0

        def forward(self, x):
            Faulty.calls += 1
            return fault(super().forward(x)) if comm.rank == 1 and Faulty.calls > 30 else super().forward(x)

    torch.manual_seed(0)
    result = train(Faulty(4, 3), x, y, comm=comm, stop={"epochs": 50, "nonfinite": 4}, run={"monitor": "none", "threads": 1})
    sys.stdout.write(f"rank {comm.rank}: {result.status.value}, finite {bool(torch.isfinite(result.theta).all())}\\n")
    sys.stdout.flush()
    comm.barrier()
    finish(comm)
    sys.exit(result.exit_code)
"""


@pytest.mark.fault(50)
def test_a_full_gpu_on_one_rank_in_the_middle_ends_all(tmp_path: Path) -> None:
    """As torch says it; a matter of the machine, no bug."""
    fault = """
    def fault(outputs):
        import torch
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    """
    outcome = run(tmp_path, fault + TRAINING, limit=30.0)
    failed(outcome, "rank 1 on ", "CUDA out of memory")
    assert outcome.status == 4 and "finite True" not in outcome.text, outcome.text


@pytest.mark.fault(1)
def test_nan_on_one_rank_for_good_ends_the_run_with_3_and_the_last_good_theta(tmp_path: Path) -> None:
    fault = """
    def fault(outputs):
        return outputs * float("nan")
    """
    outcome = run(tmp_path, fault + TRAINING, limit=30.0)
    failed(outcome)
    assert outcome.status == 3 and outcome.text.count("too many non-finite trials in a row, finite True") == 3, outcome.text


@pytest.mark.fault(40)
def test_a_rank_that_nccl_refuses_leaves_the_others_in_it_for_a_limited_time(tmp_path: Path) -> None:
    body = """
    import torch
    from torch.cuda import nccl
    from apts_mpi.parallel import transport

    def init_rank(size, key, rank):
        if rank == 1:
            raise RuntimeError("no network interface")
        time.sleep(60)

    transport.LINKING, nccl.unique_id, nccl.init_rank = 1.0, lambda: bytes(128), init_rank
    comm = start()
    comm.configure("auto", 2**30, "nccl")
    comm.plan(4, torch.float32, torch.device("cpu"), [])
    """
    failed(run(tmp_path, body, limit=30.0), "rank 1 on ", "NCCL cannot link the ranks: no network interface", "Timeout (0:00:01)!")
