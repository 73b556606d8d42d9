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

from apts_mpi import recording
from apts_mpi.config import RunConfig
from apts_mpi.recording import KEPT, CudaGraph, Recordings, Work, recordings
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


def run(record: Callable[[Work], Work] | None, batch: int, name: str = "default", samples: int = 60):
    fast, orders = solver(settings(name), 2, batch=batch, samples=samples)
    if isinstance(fast._local, Sweep):
        fast._local._recordings = Recordings(record)
    fast._objective._evaluator.recordings = Recordings(record)  # type: ignore[attr-defined]
    count = orders[0].batches
    steps = [fast.step(k // count, k % count) for k in range(OUTER)]
    return fast.theta, [(step.gradient_samples, step.value_samples, step.reductions) for step in steps]


@pytest.mark.parametrize("name", ["default", "lsr1"])
@pytest.mark.parametrize(("samples", "batch"), [(60, 0), (60, 20), (51, 20), (55, 20)])  # at the end minibatches of other sizes
def test_same_bits_and_counts(samples: int, batch: int, name: str) -> None:
    record = Played()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        theta, counts = run(record, batch, name, samples)
    plain, wanted = run(None, batch, name, samples)
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


@pytest.mark.parametrize("room", [0, 1])
def test_where_there_is_no_room_to_compare_nothing_is_recorded(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copies of the results, of which there may be room for some, are what may not fit."""
    clone, left = torch.Tensor.clone, [room]

    def full(tensor: torch.Tensor) -> torch.Tensor:
        left[0] -= 1
        if left[0] < 0:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return clone(tensor)

    played, results = Played(), [torch.zeros(3), torch.zeros(3)]
    these = Recordings(played)

    def work() -> None:
        for result in results:
            result.add_(1)

    these.run("once", work, *results)
    monkeypatch.setattr(torch.Tensor, "clone", full)
    with pytest.warns(UserWarning, match="step by step, not by CUDA graphs: CUDA out of memory"):
        these.run("once", work, *results)
    assert not these.active and played.recorded == 0 and all(torch.equal(result, torch.full((3,), 2.0)) for result in results)


def test_a_recording_that_gives_another_step_is_told_and_left() -> None:
    fast, _ = solver(settings("default"), 2)
    record = Played(lambda: fast._steps[0].mul_(1.1))
    fast._local._recordings = Recordings(record)
    with pytest.warns(UserWarning, match="what was replayed is .* away from what is right"):
        for _ in range(OUTER):
            fast.step()
    plain, wanted = run(None, 0)
    assert record.recorded == 1 and torch.equal(fast.theta, plain)


@pytest.mark.parametrize("spoilt", ["_value", "chunks"])
def test_an_evaluation_that_is_replayed_wrongly_leaves_nothing_behind(spoilt: str) -> None:
    fast, _ = solver(settings("default"), 2)

    def spoil() -> None:
        if spoilt == "_value":
            fast._objective.subdomains[0]._value.mul_(1.1)  # type: ignore[attr-defined]
        else:
            fast._loss.there.chunks[0][1].mul_(1.1)

    fast._objective._evaluator.recordings = Recordings(Played(spoil))  # type: ignore[attr-defined]
    with pytest.warns(UserWarning, match="what was replayed is .* away from what is right"):
        steps = [fast.step() for _ in range(OUTER)]
    twin, _ = solver(settings("default"), 2)
    assert [step.loss for step in steps] == [twin.step().loss for _ in range(OUTER)] and torch.equal(fast.theta, twin.theta)


def test_samples_that_came_to_lie_where_others_were_are_not_taken_for_them() -> None:
    fast, _ = solver(settings("default"), 2)
    fast._objective._evaluator.recordings = Recordings(Played())  # type: ignore[attr-defined]
    fast.step()
    first, second = fast._objective.subdomains
    for _ in range(3):
        values = [float(subdomain.owned(fast.theta, None)) for subdomain in (first, second)]
    first._share, second._share = second._share, first._share  # type: ignore[attr-defined]
    assert [float(subdomain.owned(fast.theta, None)) for subdomain in (first, second)] == values[::-1] != values


def test_the_first_of_several_errors_is_told() -> None:
    def fails(work: Work) -> Work:
        try:
            raise RuntimeError("a copy waited")
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")

    result = torch.ones(1)
    recordings = Recordings(fails)
    with pytest.warns(UserWarning, match="a copy waited"):
        for _ in range(3):
            recordings.run("key", lambda: None, result)
    assert not recordings.active


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


@pytest.mark.parametrize(
    ("deterministic", "factor", "active"), [(True, 1 + 1e-6, False), (True, 1.0, True), (False, 1 + 1e-6, True), (False, 1.01, False)]
)
def test_runs_that_repeat_themselves_take_the_same_bits_alone(
    monkeypatch: pytest.MonkeyPatch, deterministic: bool, factor: float, active: bool
) -> None:
    """A resumed run records anew, so one that was not interrupted replays what that one does step by step."""
    results = [torch.zeros(4), torch.zeros(2)]

    def work() -> None:
        for result in results:
            result.fill_(3.0)

    monkeypatch.setattr(recording, "CudaGraph", lambda: Played(lambda: results[1].mul_(factor)))
    made = recordings(RunConfig(deterministic=deterministic), torch.device("cuda"))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for key in ("first", "second"):
            for _ in range(2):
                made.run(key, work, *results)
                assert results[1].tolist() == [3.0, 3.0]
    assert made.active == active and len(told) == (factor != 1)
    apart = {1 + 1e-6: "4.0e-06", 1.01: "4.2e-02"}
    assert all(f"what was replayed is {apart[factor]} away from what is right, which is 4.2e+00 long" in str(one.message) for one in told)


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
