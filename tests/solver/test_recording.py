"""Recorded sweeps: the same bits and counts as step by step, and back to step by step where a recording is not to be trusted.

On the CPU a recording is the work itself, called again; what CUDA adds is checked by benchmarks/gpu_check.py.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "reference"))
from apts_cases import settings, solver

from apts_mpi.recording import KEPT, CudaGraph, Recordings, Work
from apts_mpi.solver.sweep import Sweep

OUTER = 24


class Played:
    """Counts what is recorded and replayed; ``spoil`` comes after each replay."""

    def __init__(self, spoil: Work = lambda: None) -> None:
        self.recorded = self.replayed = 0
        self._spoil = spoil

    def __call__(self, work: Work) -> Work:
        self.recorded += 1

        def replay() -> None:
            self.replayed += 1
            work()
            self._spoil()

        return replay


def run(record: Callable[[Work], Work] | None, batch: int, name: str = "default"):
    fast, orders = solver(settings(name), 2, batch=batch)
    if isinstance(fast._local, Sweep):
        fast._local._recordings = Recordings(record)
    fast._objective._evaluator.recordings = Recordings(record)  # type: ignore[attr-defined]
    count = orders[0].batches
    steps = [fast.step(k // count, k % count) for k in range(OUTER)]
    return fast.theta, [(step.gradient_samples, step.value_samples, step.reductions) for step in steps]


@pytest.mark.parametrize("name", ["default", "lsr1"])
@pytest.mark.parametrize("batch", [0, 20])
def test_same_bits_and_counts(batch: int, name: str) -> None:
    record = Played()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        theta, counts = run(record, batch, name)
    plain, wanted = run(None, batch, name)
    assert record.recorded >= 2 and record.replayed > record.recorded, "nothing was replayed but to be checked"
    assert torch.equal(theta, plain) and counts == wanted


def test_a_recording_that_fails_is_told_and_left() -> None:
    def fails(work: Work) -> Work:
        raise RuntimeError("operation not permitted when stream is capturing\nmore of it")

    words = "step by step, not by CUDA graphs: operation not permitted when stream is capturing; run.graph"
    with pytest.warns(UserWarning, match=words) as told:
        theta, counts = run(fails, 0)
    plain, wanted = run(None, 0)
    assert len(told) == 2 and torch.equal(theta, plain) and counts == wanted  # of evaluations, and of sweeps


def test_a_recording_that_gives_another_step_is_told_and_left() -> None:
    fast, _ = solver(settings("default"), 2)
    record = Played(lambda: fast._steps[0].mul_(1.1))
    fast._local._recordings = Recordings(record)
    with pytest.warns(UserWarning, match="the replayed step is .* away from the right one"):
        for _ in range(OUTER):
            fast.step()
    plain, wanted = run(None, 0)
    assert record.recorded == 1 and torch.equal(fast.theta, plain)


def test_what_cannot_be_recorded_is_done_each_time() -> None:
    record, result, done = Played(), torch.zeros(1), []
    recordings = Recordings(record)
    for _ in range(5):
        recordings.run(None, lambda: done.append(1), result)
    assert len(done) == 5 and record.recorded == 0


def test_a_result_that_is_no_number_says_nothing_of_a_recording() -> None:
    record, result = Played(), torch.zeros(1)
    recordings, values = Recordings(record), [1.0, float("nan"), float("inf"), 2.0, 3.0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for value in values:
            recordings.run("key", lambda value=value: result.fill_(value), result)  # type: ignore[misc]
    assert record.recorded == 1


def test_recordings_do_not_pile_up() -> None:
    recordings, result = Recordings(Played()), torch.zeros(1)
    for key in range(3 * KEPT):
        recordings.run(key, lambda: None, result)
    assert len(recordings._known) <= KEPT


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_cuda_graph_does_the_work_again() -> None:
    x = torch.ones(1000, device="cuda")
    replay = CudaGraph()(lambda: x.mul_(2))
    replay()
    replay()
    assert torch.equal(x, torch.full_like(x, 4))
