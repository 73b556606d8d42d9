"""Ctrl-C before there is anything to keep: all ranks end soon, in one plain line, with 130."""

from __future__ import annotations

from pathlib import Path

import pytest
from launch_cases import Outcome, ends_all_at_once, needs_mpiexec, run

pytestmark = needs_mpiexec

HIT = """
    import os, signal
    rank = os.environ.get("PMI_RANK", os.environ.get("OMPI_COMM_WORLD_RANK"))
    def hit(*ranks):
        if rank in ranks:
            os.kill(os.getpid(), signal.SIGINT)
"""
COMMAND = """
    from apts_mpi import cli
    from apts_mpi.__main__ import main
    def work(comm):
        {work}
        return 0
    def parse(words):
        {before}
        return cli.Command(work, True, "interrupted before anything new was kept")
    cli.parse = parse
    sys.exit(main([]))
"""
PROGRAM = """
    import torch
    from torch import nn
    from apts_mpi import train
    class Net(nn.Linear):
        calls = 0
        def forward(self, x):
            Net.calls += 1
            if Net.calls == 80:
                hit({ranks})
            return super().forward(x)
    x = torch.randn(80, 6, generator=torch.manual_seed(0))
    train(Net(6, 3), x, (x[:, 0] > 0).long(), stop={{"epochs": 100000}}, run={{"monitor": "none", "device": "cpu"}})
"""


def ended_plainly(outcome: Outcome, words: str) -> None:
    """One line of ours; MPICH and its launcher add none of theirs."""
    assert outcome.status == 130, outcome.text
    assert outcome.text.count("interrupted") == 1 and words in outcome.text and "Traceback" not in outcome.text, outcome.text
    if ends_all_at_once():
        assert len(outcome.text.splitlines()) == 1, outcome.text


@pytest.mark.parametrize("when", ["before", "work"])
@pytest.mark.parametrize("ranks", ['"0", "1"', '"1"'], ids=["all ranks", "rank 1"])
def test_a_command(tmp_path: Path, when: str, ranks: str) -> None:
    parts = {"before": "pass", "work": "comm.barrier(); comm.barrier()"}
    parts[when] = f"hit({ranks}); time.sleep(0.1); {parts[when]}"
    outcome = run(tmp_path, HIT + COMMAND.format(**parts), ranks=2, limit=30)
    ended_plainly(outcome, f"rank {0 if '0' in ranks else 1} on ")
    assert "interrupted before anything new was kept" in outcome.text


@pytest.mark.parametrize("ranks", ['"0", "1"', '"0"'], ids=["all ranks", "rank 0"])
def test_a_program_that_keeps_nothing(tmp_path: Path, ranks: str) -> None:
    ended_plainly(run(tmp_path, HIT + PROGRAM.format(ranks=ranks), ranks=2, limit=90), "rank 0 on ")
