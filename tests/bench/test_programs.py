"""The programs of benchmarks/: DistributedDataParallel in the place of our SGD, and how bars are counted and judged."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[1] / "train"))
sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import bar_parts
import verdicts
from train_cases import shards

from apts_mpi import settings
from apts_mpi.rundir import finished, read_run
from apts_mpi.storage.parameters import read_parameters

PROGRAMS = Path(__file__).parents[2] / "benchmarks"
BESIDE = Path(sys.executable).parent / "mpiexec"
MPIEXEC = str(BESIDE) if BESIDE.exists() else shutil.which("mpiexec")
RANKS = 2
CONFIG = """
method = "sgd"
[data]
path = "set"
batch = 30
[baseline]
lr = 0.05
schedule = "cosine"
weight_decay = 1e-3
nesterov = true
[model]
widths = [8]
[stop]
epochs = 6
[run]
device = "cpu"
threads = 1
monitor = "none"
"""

pytestmark = pytest.mark.skipif(MPIEXEC is None, reason="no mpiexec beside the interpreter or on PATH")


def start(folder: Path, *words: str, ranks: int = RANKS) -> subprocess.CompletedProcess[str]:
    command = [str(MPIEXEC), "-n", str(ranks), sys.executable, *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100, env={**os.environ, "OMP_NUM_THREADS": "1"})


def theta(run: Path) -> np.ndarray:
    return np.concatenate([values.reshape(-1) for values in read_parameters(run / "parameters.h5").values()])


@pytest.mark.parametrize("options", [("--data.batch", "30"), ("--data.batch", "0", "--stop.epochs", "20")])
def test_ddp_makes_the_run_that_our_sgd_makes(tmp_path: Path, options: tuple[str, ...]) -> None:
    """121 samples: the ranks' shares differ in size, and 20 steps or more go beyond the first word of rank 0."""
    shards(tmp_path, samples=121)
    (tmp_path / "c.toml").write_text(CONFIG)
    for folder, words in (("ddp", [str(PROGRAMS / "ddp_train.py")]), ("ours", ["-m", "apts_mpi", "train"])):
        done = start(tmp_path, *words, "c.toml", "--run.dir", folder, *options)
        assert done.returncode == 0, done.stdout + done.stderr
    theirs, ours = read_run(tmp_path / "ddp"), read_run(tmp_path / "ours")
    apart = np.linalg.norm(theta(theirs.path) - theta(ours.path)) / np.linalg.norm(theta(ours.path))
    assert apart < 1e-5
    assert theirs.completion is not None and ours.completion is not None
    for name in ("status", "iterations", "epochs", "n_params", "passes", "reductions", "messages", "accuracy"):
        assert getattr(theirs.completion, name) == getattr(ours.completion, name), name
    assert theirs.completion.bytes == 4 * theirs.completion.n_params * theirs.completion.iterations
    assert "DistributedDataParallel" in theirs.provenance["program"] and "rank 0" in theirs.provenance["recorded_loss"]
    assert {line.region for line in theirs.times if line.phase == "run"} >= {"evaluate", "accept", "test"}
    for name in ("accuracy", "epoch", "gradient_samples"):
        np.testing.assert_array_equal(theirs.columns[name], ours.columns[name])
    wanted = settings.resolve(settings.from_file(tmp_path / "c.toml"), settings.from_options([
        *((words[0].removeprefix("--"), words[1]) for words in zip(options[::2], options[1::2], strict=True)), ("run.dir", "ddp")
    ])).config  # fmt: skip
    assert finished(tmp_path / "ddp", settings.to_toml(wanted))


def test_a_time_limit_ends_all_ranks(tmp_path: Path) -> None:
    """Rank 0's clock alone; the limit is over before the first word of rank 0."""
    shards(tmp_path)
    (tmp_path / "c.toml").write_text(CONFIG)
    done = start(tmp_path, str(PROGRAMS / "ddp_train.py"), "c.toml", "--run.dir", "run", "--stop.wall_time", "1e-9")
    assert done.returncode == 0, done.stderr
    completion = read_run(tmp_path / "run").completion
    assert completion is not None and completion.status == "wall-time limit" and completion.iterations == 16


@pytest.mark.parametrize(("options", "words"), [
    ("--method adam", "method must be sgd, got adam"),
    ("--baseline.overlap true", "baseline.overlap must be false"),
    ("--solver.subdomains 4", "solver.subdomains must be 0 or the 2 ranks, got 4"),
    ("--comm.emulate_latency 1e-3", "comm.emulate_latency and comm.emulate_bandwidth must be 0"),
    ("--stop.target_loss 0.1", "stop.target_loss and stop.grad_norm must not be set"),
    ("--baseline.lr -1", "baseline.lr must be positive"),
])  # fmt: skip
def test_settings_that_ddp_cannot_follow(tmp_path: Path, options: str, words: str) -> None:
    (tmp_path / "c.toml").write_text(CONFIG)
    done = start(tmp_path, str(PROGRAMS / "ddp_train.py"), "c.toml", *options.split())
    assert done.returncode == 2 and done.stderr.count(words) == 1, done.stderr
    assert "Traceback" not in done.stderr and [path.name for path in tmp_path.iterdir()] == ["c.toml"]


def test_a_ratio_is_judged_by_its_median_on_the_right_side() -> None:
    row = verdicts.of_pairs(6, "theirs / ours", [2.0, 4.0, 6.0], [1.0, 2.0, 2.0], "1 s", bar=2.0)
    assert row.ratio == 2.0 and row.met is True and row.interval_95 == (2.0, 3.0) and ">= 2" in row.text()
    assert dataclasses.replace(row, bar=2.1).verdict == "NOT MET"
    assert dataclasses.replace(row, bar=1.9, at_least=False).met is False and dataclasses.replace(row, bar=None).met is None
    assert json.loads(json.dumps(row.plain()))["verdict"] == "met"


def test_sums_and_bytes_are_counted_iteration_by_iteration(tmp_path: Path) -> None:
    """The table holds; a table with a vector more, a small message more or another first iteration does not."""
    bar_parts.write_set(tmp_path)
    case = bar_parts.Traffic("a", f"--preset default {bar_parts.FULL}", 2, 0, 1, search=True)
    rows = [bar_parts.counted(dataclasses.replace(case, name=f"n{i}", **wrong), tmp_path)
            for i, wrong in enumerate(({}, {"vectors": 3, "first": 0}, {"small": 1}, {"first": 0}, {"search": False}))]  # fmt: skip
    assert [row.ratio for row in rows] == [1.0, pytest.approx(1 / 6), pytest.approx(1 / 6), pytest.approx(5 / 6), pytest.approx(5 / 6)]
    assert [row.met for row in rows] == [True, False, False, False, False] and "FOUND" in rows[1].base


def test_seconds_per_gradient_evaluation_of_several_methods(tmp_path: Path) -> None:
    words = "--cases apts-5,apts-first-5,sweep,sgd,overlapped --samples 16 --shape mnist --widths 4 --rounds 3 --gradients 6"
    slow = "--latency 2e-3 --bandwidth 1e9"
    for name, more in (("near", ""), ("far", slow), ("alone", f"{slow} --alone")):
        done = start(tmp_path, str(PROGRAMS / "steps.py"), "--out", f"{name}.json", *words.split(), *more.split())
        assert done.returncode == 0, done.stderr
    near, far, alone = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("near", "far", "alone"))
    assert near["n_params"] == 784 * 4 + 4 + 4 * 10 + 10 and far["ranks"] == 2
    assert near["cases"]["apts-5"]["gradients"][0] == pytest.approx(8 * near["cases"]["apts-5"]["iterations_per_block"], rel=0.5)
    assert near["cases"]["sgd"]["gradients"] == [6.0] * 3 and near["cases"]["apts-first-5"]["values"][0] >= 1
    assert min(far["cases"]["sgd"]["seconds"]) > 2e-3  # a message for each gradient
    assert min(far["cases"]["sgd"]["cpu_seconds"]) > 0
    assert len(alone["cases"]) == 5 and all(len(case["seconds"]) == 3 for case in alone["cases"].values())


def test_memory_is_counted_in_vectors_of_n_numbers() -> None:
    """A small network: what the interpreter takes beside the vectors blurs the number, so it is only in the right place."""
    program = "import json, sys\nimport memory\nmemory.WIDE = (1024, 512)\nprint(json.dumps(memory.peak(sys.argv[1])))"
    found = {}
    for case in ("lsr1", "default"):
        command, alone = [sys.executable, "-c", program, case], {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=PROGRAMS, capture_output=True, text=True, timeout=100, env=alone)
        assert done.returncode == 0, done.stderr
        found[case] = json.loads(done.stdout)
    assert found["lsr1"]["n"] == 785 * 1024 + 1025 * 512 + 513 * 10
    assert 34 < found["lsr1"]["vectors"] < 38.5, "24 of two memories of five pairs and a spare one, 10 of the method, and torch's gradient"
    assert 34 < found["default"]["vectors"] < 39.5, "gradients of 21 chunks, and the rest"


def test_rules_of_the_published_code_let_the_summed_step_leave_the_radius(tmp_path: Path) -> None:
    """The paper's own never do, and a correction of the value alone is another run than one of value and gradient."""
    convert = [sys.executable, "-m", "apts_mpi", "data", "convert", "digits", "-", str(tmp_path / "digits")]
    subprocess.run(convert, check=True, capture_output=True, timeout=100)
    words = ["--problem", "digits", "--data", "digits", "--epochs", "2", "--only", "o1-N2", "--out", "lines.json"]
    command = [sys.executable, str(PROGRAMS / "published_rules.py"), *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    found = {line["rule"]: line for line in json.loads((tmp_path / "lines.json").read_text())["lines"]}
    assert list(found) == ["paper", "long", "value", "both"]
    assert found["paper"]["farthest"] < 1.001 and found["value"]["farthest"] < 1.001
    assert 1.5 < found["long"]["farthest"] <= 10.001 and 1.5 < found["both"]["farthest"] <= 10.001  # nu N = 10
    assert found["value"]["loss_before_last"] != found["paper"]["loss_before_last"]


@pytest.mark.parametrize("limit", ["--within", "--total"])
def test_a_check_of_the_gpu_that_does_not_end_is_ended_and_kept(limit: str, tmp_path: Path) -> None:
    command = [sys.executable, str(PROGRAMS / "gpu_check.py"), "--device", "cpu", limit, "1", "--out", str(tmp_path / "gpu.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1 and "not over after 1 s" in done.stdout
    kept = json.loads((tmp_path / "gpu.json").read_text())
    assert not kept["results"]["same"]["met"] and kept["versions"]["torch"]


def test_what_many_subdomains_cost_is_measured_in_turn(tmp_path: Path) -> None:
    words = ["--ranks", "1", "--shape", "mnist", "--samples", "64", "--rounds", "5", "--out", str(tmp_path / "found.json")]
    command = [sys.executable, str(PROGRAMS / "subdomains.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    (line,) = json.loads((tmp_path / "found.json").read_text())["lines"]
    assert line["N"] == [1, 16] and line["ratio"] > 1 and done.returncode == int(not line["met"]), done.stderr


def test_pieces_and_layouts_are_timed_in_turn(tmp_path: Path) -> None:
    words = ["--samples", "32", "--pieces", "16", "--repeats", "1", "--out", str(tmp_path / "found.json")]
    command = [sys.executable, str(PROGRAMS / "passes.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    cases = [line["case"] for line in json.loads((tmp_path / "found.json").read_text())["lines"]]
    assert {"mnist, pieces of 16", "mnist, pieces of 32", "resnet, channels last"} <= set(cases)
