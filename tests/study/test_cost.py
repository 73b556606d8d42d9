"""Counts against what real steps count, and prices against a machine of round numbers."""

from __future__ import annotations

import itertools
import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from machine_cases import ONE, VECTOR, N, machine
from torch.utils._python_dispatch import TorchDispatchMode

sys.path += [str(Path(__file__).parents[1] / name) for name in ("solver", "train", "../benchmarks")]
import baseline_cases
import keep_study
from apts_cases import network

from apts_mpi.config import Config
from apts_mpi.contracts import CHECKS, LANE, SCALARS, TAIL, Flag
from apts_mpi.native import kernels
from apts_mpi.network import Network
from apts_mpi.parallel.serial import SerialCommunicator
from apts_mpi.presets import preset
from apts_mpi.problem.objective import batch_size
from apts_mpi.problem.objective import plan as plan_order
from apts_mpi.regular import SUM, read_summed, sum_holds, with_sum
from apts_mpi.solver.build import build_local
from apts_mpi.solver.local import LocalStart, Spare
from apts_mpi.solver.lsr1 import LSR1
from apts_mpi.solver.vectors import norm
from apts_mpi.study import work
from apts_mpi.study.cost import predict
from apts_mpi.study.machine import Machine, between, nearest, read_machine
from apts_mpi.study.shares import shares
from apts_mpi.study.work import Work, count
from apts_mpi.timing import Timers

SAMPLES = 61
PARAMS = sum(p.numel() for p in network().parameters())
CELLS = LANE * len(SCALARS) + len(Flag)
CHECKED = TAIL + LANE * len(CHECKS)  # cells where sums are checked


class Watching(SerialCommunicator):
    """Notes the bytes of every sum as MPI would send them."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[int] = []

    def sum_(self, message: Any, vector: bool = True) -> None:
        self.sent.append(message.host.nbytes if vector else message.host[message.n_params :].nbytes)
        super().sum_(message, vector)


def configs() -> list[Any]:
    found = []
    for solver, step in itertools.product(("lsr1", "first", "sweep"), ("lsr1", "first", "none")):
        # So small a first radius that the ball is never used up: all local iterations are made.
        local = {"solver": solver, "iters": 3, "radius_start": 0.05, "carry": False}
        local |= {"chunk": 4, "chunks_min": 2, "chunks_max": 5, "passes": 2}
        found.append(preset("lsr1", local=local, global_step={"solver": step}, trust_region={"radius_init": 0.01}))
    found += [preset("default", method, baseline={"lr": 0.01, "period": 2}) for method in ("sgd", "adam", "adamw", "local-sgd")]
    found += [preset("default", "sgd", baseline={"overlap": True, "bucket": 40})]
    found += [preset("default", "trust-region", global_step={"solver": name}) for name in ("lsr1", "first")]
    return [pytest.param(c, id=f"{c.method}-{c.local.solver}-{c.global_step.solver}{'-overlap' * c.baseline.overlap}") for c in found]


def sized(config: Config, subdomains: int, batch: int) -> Config:
    return replace(
        config, solver=replace(config.solver, subdomains=subdomains), data=replace(config.data, batch=batch, overlap=0.1),
        model=replace(config.model, dtype="float64"),
    )  # fmt: skip


@pytest.fixture
def overlapping(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steppers on the same orders as ``assembly`` would make, overlap and all."""
    original = baseline_cases.plan

    def plan(samples: int, subdomains: int, *, batch: int, overlap: float, seed: int) -> Any:
        return original(samples, subdomains, batch=batch, overlap=OVERLAP[0], seed=seed)

    monkeypatch.setattr(baseline_cases, "plan", plan)


OVERLAP = [0.0]


@pytest.mark.usefixtures("overlapping")
@pytest.mark.parametrize("batch", [0, 20])
@pytest.mark.parametrize("subdomains", [1, 2, 3])
@pytest.mark.parametrize("config", configs())
def test_the_work_is_what_a_run_counts(config: Config, subdomains: int, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = list[int]()
    propose = LSR1.propose_
    monkeypatch.setattr(LSR1, "propose_", lambda self, *a: pairs.append(self.count) or propose(self, *a))  # type: ignore[func-returns-value]
    config, comm = sized(config, subdomains, batch), Watching()
    OVERLAP[0] = config.data.overlap if config.method in ("apts", "trust-region") else 0.0
    stepper, objective, _ = baseline_cases.stepper(config, samples=SAMPLES, batch=batch, comm=comm)
    outer = 1 if not batch else -(-3 // 2) if config.method == "local-sgd" else 3
    whole = 0
    for k in range(6):
        before, sent = objective.gradient_samples, len(comm.sent)
        pairs.clear()
        info = stepper.step(k // outer, k % outer)
        work = count(config, PARAMS, 1, SAMPLES, batch=k % outer, rank=0)
        if k == 0 and config.method in ("apts", "trust-region"):
            continue  # the first full batch has A besides, the first sweep the values by which its radius is found
        whole += 1
        assert work.gradient_samples == info.gradient_samples == objective.gradient_samples - before
        assert work.value_samples == info.value_samples
        assert work.reductions == info.reductions
        assert [message.bytes for message in work.messages] == comm.sent[sent:]
        assert sum(work.model_steps.values()) == len(pairs)
    assert whole >= 5


def test_the_metric_of_a_sweep_is_counted_in_full_batch_alone() -> None:
    """Two passes over m vectors at a step, a pair's products with 2 m vectors, and Q, m combinations of them."""
    m, steps = 3, 2 * 2 * 21  # two passes, two subdomains, 20 chunks and the borrowed samples
    for batch, wanted in ((0, 2 * steps * m + 2 * 2 * m + m * 2 * m), (20, 0)):
        with_it, without = (
            count(replace(config, local=replace(config.local, memory=memory)), PARAMS, 1, SAMPLES).vectors
            for memory in (m, 0) for config in [sized(preset("default"), 2, batch)]
        )  # fmt: skip
        more = {name: with_it[name] - without[name] for name in with_it if with_it[name] != without[name]}
        assert more == ({"combine": wanted, "copy": 1, "sub": 1} if batch == 0 else {})


@pytest.mark.parametrize(("combine", "subdomains"), [("mean", 2), ("sum", 2), ("mean", 1)])
def test_the_momentum_of_summed_steps_is_counted(combine: str, subdomains: int) -> None:
    with_it, without = (
        count(replace(config, solver=replace(config.solver, momentum=on)), PARAMS, 1, SAMPLES).vectors
        for on in (True, False) for config in [sized(preset("default", solver={"combine": combine}), subdomains, 20)]
    )  # fmt: skip
    more = {name: with_it[name] - without[name] for name in with_it if with_it[name] != without[name]}
    assert more == ({"dot": 2, "add": 1, "copy": 1} if (combine, subdomains) == ("mean", 2) else {})


def test_messages_have_the_bytes_of_the_layout() -> None:
    assert TAIL == CELLS == 211
    work = count(sized(preset("lsr1"), 2, 20), 1000, 2, SAMPLES)
    assert [m.bytes for m in work.messages] == [8 * (1000 + CHECKED)] * 4 and work.vectors["checksum"] == 4
    assert CHECKED == CELLS + 52 == 263
    alone = count(sized(preset("lsr1"), 2, 20), 1000, 1, SAMPLES)
    assert [m.bytes for m in alone.messages] == [8 * (1000 + 211)] * 4 and "checksum" not in alone.vectors
    none = count(preset("default", data={"batch": 20}, safety={"checksum": False}), 1000, 2, SAMPLES)
    assert "checksum" not in none.vectors and [m.bytes for m in none.messages] == [4 * 1211, 4 * 1211, 4 * 211]


@pytest.mark.parametrize(("subdomains", "ranks", "batch"), [(1, 1, 0), (4, 2, 13), (5, 3, 20), (3, 1, 30)])
def test_shares_are_those_of_the_orders(subdomains: int, ranks: int, batch: int) -> None:
    config = preset("default", solver={"subdomains": subdomains}, data={"batch": batch, "overlap": 0.13})
    orders = plan_order(SAMPLES, subdomains, batch=batch, overlap=0.13, seed=0)
    for k in range(orders[0].batches):
        found = [share for rank in range(ranks) for share in shares(config, ranks, SAMPLES, k, rank)]
        assert [share.owned for share in found] == [batch_size(order, k) for order in orders]
        heads = [len(orders[(i + 1) % subdomains].of_batch(0, k)[0]) if subdomains > 1 else 0 for i in range(subdomains)]
        assert [share.borrowed for share in found] == heads


def test_too_few_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="data.batch = 2 is too small for 4 subdomains"):
        count(preset("default", "sgd", data={"batch": 2}), N, 4, 100)
    with pytest.raises(ValueError, match="at least one subdomain per rank"):
        count(preset("default", "sgd", solver={"subdomains": 2}), N, 4, 100)


def test_vector_passes_of_a_local_step_by_hand() -> None:
    config = preset("lsr1", local={"solver": "first", "iters": 1}, global_step={"solver": "none"}, data={"overlap": 0.0})
    assert dict(count(config, N, 1, 100).vectors) == {
        # begin: copy, mul, sub, zero, square; trial: reach, add, mul, square; its end: copy; mean: mul; C: copy 2, add; D: copy 3, dot 2
        "copy": 7, "mul": 3, "sub": 1, "zero": 1, "square": 2, "reach": 1, "add": 2, "dot": 2,
    }  # fmt: skip


class Passes(TorchDispatchMode):
    """Counts operations on vectors of n numbers by their names."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n, self.found = n, Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(isinstance(value, torch.Tensor) and value.shape == (self.n,) for value in args):
            self.found[func.overloadpacket.__name__.rstrip("_")] += not func.is_view and func is not torch.ops.aten.detach.default
        return func(*args, **(kwargs or {}))


class Bowl:
    """A subdomain with f_i = ||theta||^2 / 2, evaluated by numpy, whose operations are not counted."""

    def local_from_owned(self, theta: torch.Tensor, value: float, grad: torch.Tensor, out: torch.Tensor) -> float:
        torch.mul(grad, 1.0, out=out)
        return value

    def local(self, theta: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
        grad.numpy()[:] = theta.numpy()
        return torch.tensor(0.5 * float(np.dot(theta.numpy(), theta.numpy())), dtype=torch.float64)


@pytest.mark.parametrize("iters", [1, 2, 5])
@pytest.mark.parametrize("consistent", [True, False])
def test_vector_passes_are_those_of_a_real_local_solve(iters: int, consistent: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    local = {"solver": "first", "iters": iters, "radius_start": 0.01, "carry": False}
    config = preset("lsr1", local=local, global_step={"solver": "none"}, solver={"consistent": consistent}, data={"overlap": 0.0})
    theta, n = torch.ones(50, dtype=torch.float64), 50
    ball, value = 1.0, 0.5 * n
    spare = Spare(*(torch.zeros(n, dtype=torch.float64) for _ in range(4)))
    start = LocalStart(0, Bowl(), theta, theta.clone(), value, theta.clone(), torch.empty(0, n), ball, 1e-9, spare)  # type: ignore[arg-type]
    out, solver = torch.zeros(n, dtype=torch.float64), build_local(config, theta, Timers())
    with Passes(n) as passes, monkeypatch.context() as patch:
        patch.setattr(kernels, "reach_", lambda *given: (passes.found.update(["reach"]), hidden(*given))[1])
        result = solver.solve(start, out)
    assert result.accepted == result.iters == iters and norm(out) > 0
    counting = work._Counting(config, n, [shares(config, 1, 100, 0, 0)[0]], True, False, False)
    counting.local_steps(counting.shares[0], iters)
    expected = Counter({name: times for name, times in counting.done.vectors.items() if name != "square"})
    passes.found["dot"] -= counting.done.vectors["square"]  # of the model
    assert +passes.found == expected


def hidden(*given: torch.Tensor) -> torch.Tensor:
    """``kernels.reach_`` by numpy."""
    step, moved, origin, correction, reached, trial = (vector.numpy() for vector in given)
    np.add(moved, step, out=reached)
    np.add(origin, reached, out=trial)
    return torch.tensor([reached @ reached, correction @ reached], dtype=torch.float64)


def test_the_memory_fills_during_the_local_steps() -> None:
    config = preset("lsr1", local={"iters": 7, "memory": 3}, global_step={"memory": 5}, data={"batch": 50})
    assert dict(count(config, N, 1, 100).model_steps) == {0: 1, 1: 1, 2: 1, 3: 4, 5: 1}
    known = count(config, N, 1, 100, 2.5)
    assert dict(known.model_steps) == {0: 1, 1: 1, 2: 0.5, 5: 1}


def test_the_price_of_sgd_by_hand() -> None:
    config = preset("default", "sgd", data={"batch": 128})
    found = predict(machine(), config, N, 1, 256)
    assert found.parts["gradients"] == pytest.approx(1e-3 + 128e-5 + 5e-5 + 128e-6)
    assert found.parts["vectors"] == pytest.approx(20e-6 + VECTOR["dot"])
    assert found.parts["messages"] == found.parts["values"] == found.parts["model"] == 0
    assert found.seconds == pytest.approx(sum(found.parts.values())) and found.parts["overhead"] == 4e-5
    assert found.floor == pytest.approx(1e-3 + 128e-5)
    two = predict(machine(), config, N, 2, 256)
    nbytes = 4 * (N + CHECKED)
    assert two.parts["vectors"] == pytest.approx(20e-6 + VECTOR["dot"] + VECTOR["checksum"])
    assert two.parts["messages"] == pytest.approx(2e-5 + (nbytes - 1016) * 1e-8) and two.note == ""
    assert two.floor == pytest.approx(1e-3 + 64e-5 + between(((16, 0.9e-5), (10016, 9e-5)), 4 * N))


def test_the_price_of_apts_by_hand() -> None:
    config = preset("lsr1", local={"iters": 2}, data={"batch": 100, "overlap": 0.0})
    found = predict(machine(), config, N, 1, 200)
    assert found.parts["gradients"] == pytest.approx(5 * (1e-3 + 100e-5) + 5e-5 + 100e-6)
    assert found.parts["model"] == pytest.approx(1e-4 + 2e-4 + 7e-5 + 6e-4)
    counts = {"copy": 2 + 1 + 2 + 3 + 3, "mul": 2, "sub": 1, "zero": 1, "square": 1, "reach": 2, "add": 2 + 1 + 1, "dot": 3 + 1}
    assert found.parts["vectors"] == pytest.approx(sum(VECTOR[name] * times for name, times in counts.items()))


def test_large_gradients_are_pieces() -> None:
    assert ONE.gradients(1024) == pytest.approx(1e-3 + 1024e-5)
    assert ONE.gradients(2500) == pytest.approx(1e-3 + 2 * 9e-4 + 2500e-5)
    assert ONE.values(2048) == pytest.approx(2 * 4e-4 + 2048 * 4e-6)
    assert ONE.gradients(72) == pytest.approx(1e-3 + 72e-5) and ONE.gradients(0) == 0


def test_samples_that_cannot_be_kept_are_normalised_at_every_evaluation() -> None:
    config = preset("default", "sgd", data={"batch": 100})
    kept, anew = (predict(machine(ready_bytes=nbytes), config, N, 1, 200).parts["gradients"] for nbytes in (4000, 3999))
    assert anew == pytest.approx(kept)  # a single evaluation: now or when the minibatch is chosen
    full = [predict(machine(ready_bytes=nbytes), preset("default", "sgd"), N, 1, 100).parts["gradients"] for nbytes in (4000, 3999)]
    assert full[1] - full[0] == pytest.approx(1e-5 + 100 * 5e-7)


def test_a_blocking_sum_waits_for_the_emulated_wire_and_an_overlapped_one_hides_it() -> None:
    wire, nbytes = Network(1e-3, 1e6, 4), 4 * (N + TAIL)
    comm = {"emulate_latency": 1e-3, "emulate_bandwidth": 1e6, "emulate_ranks": 4}
    blocking = predict(machine(), preset("default", "sgd", data={"batch": 64}, comm=comm), N, 1, 128)
    assert blocking.parts["messages"] == pytest.approx(wire.seconds(nbytes))
    over = predict(machine(), preset("default", "sgd", data={"batch": 64}, comm=comm, baseline={"overlap": True}), N, 1, 128)
    ready, free, arrived = (0.6e-3 + 6e-6 * 64, 0.9e-3 + 9e-6 * 64, 1.1e-3 + 64e-5), 0.0, 0.0
    for moment, size in zip(ready, (3000, 1000, 4 * TAIL), strict=True):
        latency, on_wire = wire.parts(size)
        free = max(free, moment) + on_wire
        arrived = max(arrived, free + latency)
    assert over.parts["messages"] == pytest.approx(arrived - ready[-1]) and over.parts["messages"] < blocking.parts["messages"]
    quick = predict(machine(), preset("default", "sgd", data={"batch": 64}, baseline={"overlap": True}), N, 1, 128)
    assert quick.parts["messages"] == 0
    given = predict(machine(), preset("default", "sgd", data={"batch": 64}), N, 1, 128, network=wire)
    assert given.parts == blocking.parts


def test_parts_of_another_size_are_spread_over_the_backward_pass() -> None:
    config = preset("default", "sgd", data={"batch": 64}, baseline={"overlap": True, "bucket": 2000})
    wire = Network(0.0, 1e6, 2)
    found = predict(machine(), config, N, 1, 128, network=wire).parts["messages"]
    forward, end = 4e-4 + 4e-6 * 64, 1.1e-3 + 64e-5
    first = (forward + end) / 2 + wire.seconds(2000)
    assert found == pytest.approx(max(first, end) + wire.seconds(2000) + wire.seconds(4 * TAIL) - end)


def test_another_rank_count_is_said() -> None:
    config, found = preset("default", "sgd", data={"batch": 64}), machine()
    far = predict(found, config, N, 8, 1000)
    assert far.note == "computing at P = 8 as measured at P = 2; sums at P = 8 as measured at P = 2"
    assert far.parts["messages"] == pytest.approx(Network(1e-5, 1e8, 8).seconds(4 * (N + CHECKED)))
    assert nearest({1: 0, 4: 0}, 2) == 4
    with pytest.raises(ValueError, match="no reduce-P2.json"):
        predict(Machine(found.compute), config, N, 2, 1000)
    with pytest.raises(ValueError, match="measured for n = 1000"):
        predict(found, config, N + 1, 2, 1000)


@pytest.mark.parametrize("config", configs())
def test_more_samples_or_more_ranks_cost_no_less(config: Config) -> None:
    by_samples = [predict(machine(), sized32(config, batch), N, 2, 4 * batch).seconds for batch in (20, 40, 100, 1000, 4000)]
    assert (np.diff(by_samples) > 0).all()
    by_wire = [predict(machine(), sized32(config, 400), N, 2, 1600, network=Network(1e-4, 1e8, p)).seconds for p in (2, 4, 64, 4096)]
    assert (np.diff(by_wire) > -1e-15).all() and by_wire[-1] > by_wire[0]


def sized32(config: Config, batch: int) -> Config:
    return replace(config, data=replace(config.data, batch=batch))


def test_between() -> None:
    table = ((1, 5.0), (2, 4.0), (4, 8.0))
    assert [between(table, x) for x in (0, 1, 1.5, 2, 3, 4, 5)] == [5, 5, 4.5, 4, 6, 8, 10]
    assert between(((1, 5.0), (2, 4.0)), 9) == 4  # a table that falls at its end says nothing about what follows


def test_reading_a_folder(tmp_path: Path) -> None:
    assert read_machine(tmp_path) is None
    reduce = {"format": "apts-mpi bench", "bench": "reduce", "ranks": 2, "fit": {"latency_s": 1e-5, "bandwidth_bytes_per_s": 1e8},
              "results": [{"bytes": 16, "ours_s": {"median": 2e-5}, "base_s": {"median": 1e-5}}]}  # fmt: skip
    (tmp_path / "reduce-P2.json").write_text(json.dumps(reduce))
    assert read_machine(tmp_path) is None
    for text in ("{", "[]", json.dumps({**reduce, "bench": "step"}), json.dumps({"format": "apts-mpi bench", "bench": "compute"})):
        (tmp_path / "compute-P1.json").write_text(text)
        with pytest.raises(ValueError, match=r"compute-P1\.json"):
            read_machine(tmp_path)


def test_recorded_files_with_a_checksum_are_as_they_were_written() -> None:
    recorded = Path(__file__).parents[2] / "benchmarks" / "results"
    summed = {path: tree for path in recorded.rglob("*.json") if SUM in (tree := json.loads(path.read_text()))}
    assert len(summed) >= 5 and [path for path, tree in summed.items() if not sum_holds(tree)] == []


def texts(value: Any) -> Iterator[str]:
    """All texts in a document."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from texts(one)


def test_recorded_files_name_no_folder_of_a_machine() -> None:
    recorded = Path(__file__).parents[2] / "benchmarks" / "results"
    found = {path.name: list(texts(json.loads(path.read_text()))) for path in recorded.rglob("*.json")}
    assert {name: text for name, said in found.items() for text in said if text.startswith("/")} == {}


def test_a_study_is_kept_without_the_folder_that_it_was_made_in(tmp_path: Path) -> None:
    study = tmp_path / "studies" / "one"
    sealed = with_sum({"provenance": {"command": "/home/me/apts_mpi/__main__.py bench --out a", "folder": "/home/me", "ranks": 1}})
    plain = dict.fromkeys(("points.json", "report/report.md", "report/tables.tex", "report/figures/one.png"), "text")
    for name, text in {**plain, "calibration/compute-P1.json": json.dumps(sealed)}.items():
        (study / name).parent.mkdir(parents=True, exist_ok=True)
        (study / name).write_text(text)
    keep_study.keep(study, tmp_path / "results")
    kept = read_summed(tmp_path / "results" / "one" / "calibration" / "compute-P1.json")
    assert kept["provenance"] == {"command": "apts_mpi/__main__.py bench --out a", "folder": ".", "ranks": 1}
    assert sorted(path.name for path in (tmp_path / "results" / "one").rglob("*.*")) == [
        "compute-P1.json", "one.png", "points.json", "report.md", "tables.tex"
    ]  # fmt: skip


def test_work_of_nothing() -> None:
    assert Work().gradient_samples == Work().value_samples == Work().reductions == 0
