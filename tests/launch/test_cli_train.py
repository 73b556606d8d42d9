"""The train command as a user types it: mpiexec -n P python -m apts_mpi train."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from same_bits import MPIEXEC, make_data, theta_hash, train

pytestmark = pytest.mark.skipif(MPIEXEC is None, reason="no mpiexec beside the interpreter or on PATH")

COMMON = "--data.path set --run.dir run --run.device cpu --run.threads 1"


def test_same_parameters_on_two_ranks_and_without_a_launcher(tmp_path: Path) -> None:
    """And the same record of what was done; test_same_bits.py has more ranks."""
    make_data(tmp_path)
    hashes = {ranks: theta_hash(tmp_path, ranks) for ranks in (0, 2)}
    assert len(set(hashes.values())) == 1, hashes
    completions = [json.loads((tmp_path / f"run-{ranks}" / "completion.json").read_text()) for ranks in hashes]
    assert [record["ranks"] for record in completions] == [1, 2]
    assert len({(record["loss"], record["accuracy"], record["passes"], record["messages"]) for record in completions}) == 1
    assert completions[0]["accuracy"] > 80 and completions[0]["status"] == "epochs done"


def test_output_of_a_run(tmp_path: Path) -> None:
    """One voice for all ranks, and a run directory with everything in it."""
    make_data(tmp_path)
    (tmp_path / "it.toml").write_text('[data]\npath = "set"\n[stop]\nepochs = 2\n[run]\ndir = "my run"\nthreads = 1\n')
    outcome = train(tmp_path, 2, "it.toml --stop.epochs 1")
    assert outcome.status == 0, outcome.text
    for words in ("N = 2 on P = 2 ranks", "test accuracy", "epochs done", "local solve", "my run"):
        assert words in outcome.text, outcome.text
    assert outcome.text.count("P = 2 ranks") == 1
    names = {path.name for path in (tmp_path / "my run").iterdir()}
    assert names >= {"config.toml", "provenance.json", "records.csv", "records.h5", "timing.csv", "parameters.h5", "completion.json"}
    assert len((tmp_path / "my run" / "records.csv").read_text().splitlines()) == 2


@pytest.mark.parametrize(("wish", "words"), [("yes", "APTS_NATIVE must be 0, 1 or empty"), ("0", "epochs done")])
def test_the_switch_of_the_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wish: str, words: str) -> None:
    make_data(tmp_path)
    monkeypatch.setenv("APTS_NATIVE", wish)
    outcome = train(tmp_path, 2, f"{COMMON} --stop.epochs 1")
    assert words in outcome.text and "Traceback" not in outcome.text, outcome.text
    assert outcome.status == (0 if wish == "0" else 2), outcome.text


def test_through_mpi4py_a_run_finishes_and_one_raising_rank_ends_all(tmp_path: Path) -> None:
    """``python -m mpi4py -m apts_mpi``: its own hook on exceptions and ours do not hinder each other."""
    make_data(tmp_path)
    (tmp_path / "brittle.py").write_text(
        "import os, torch\n"
        "seen = []\n"
        "def loss(outputs, targets):\n"
        "    seen.append(1)\n"
        "    if len(seen) > 20 and '1' in (os.environ.get('PMI_RANK'), os.environ.get('OMPI_COMM_WORLD_RANK')):\n"
        "        raise RuntimeError('boom')\n"
        "    return torch.nn.functional.cross_entropy(outputs, targets, reduction='none')\n"
    )
    good = train(tmp_path, 2, f"{COMMON} --stop.epochs 1", through=("-m", "mpi4py"))
    assert good.status == 0 and "P = 2 ranks" in good.text, good.text
    bad = train(tmp_path, 2, "--data.path set --run.dir bad --model.loss brittle:loss --stop.epochs 99", through=("-m", "mpi4py"))
    assert bad.status and bad.seconds < 60 and bad.text.count("Traceback") == 1, bad.text  # mostly imports, on a busy machine
    assert "rank 1" in bad.text and "RuntimeError: boom" in bad.text and not (tmp_path / "bad" / "completion.json").exists()


@pytest.mark.fault(1)
def test_numerical_failure_ends_with_3_on_all_ranks(tmp_path: Path) -> None:
    """Finite at the start and nowhere else."""
    make_data(tmp_path)
    (tmp_path / "brittle.py").write_text(
        "import torch\n"
        "seen = []\n"
        "def loss(outputs, targets):\n"
        "    values = torch.nn.functional.cross_entropy(outputs, targets, reduction='none')\n"
        "    seen.append(1)\n"
        "    return values if len(seen) <= 5 else values * torch.nan\n"  # tried before the run: two for memory, two, a gradient
    )
    outcome = train(tmp_path, 2, f"{COMMON} --model.loss brittle:loss --stop.nonfinite 2")
    assert outcome.status == 3, outcome.text
    record = json.loads((tmp_path / "run" / "completion.json").read_text())
    assert record["status"] == "too many non-finite trials in a row" and "Traceback" not in outcome.text


@pytest.mark.parametrize(("options", "words"), [
    (f"{COMMON} --solver.subdomain 3", "did you mean --solver.subdomains"),
    (f"{COMMON} --trust_region.eta1 1.2", "trust_region.eta1 must be in (0, 1), got 1.2"),
    ("--data.path nowhere --run.dir run", "no data set at nowhere"),
])  # fmt: skip
def test_what_the_user_got_wrong_ends_with_2_and_is_told_once(options: str, words: str, tmp_path: Path) -> None:
    make_data(tmp_path)
    began = time.monotonic()
    outcome = train(tmp_path, 2, options, limit=20)
    assert outcome.status == 2 and outcome.text.count(words) == 1, outcome.text
    assert "Traceback" not in outcome.text and not (tmp_path / "run").exists()
    assert time.monotonic() - began < 15


@pytest.mark.fault(26)
def test_missing_shard_names_rank_and_path(tmp_path: Path) -> None:
    """Only rank 1 needs the second file."""
    make_data(tmp_path, count=2)
    (tmp_path / "set" / "train-00001-of-00002.h5").unlink()
    outcome = train(tmp_path, 2, f"{COMMON} --data.overlap 0", limit=20)
    assert outcome.status == 2, outcome.text
    assert "rank 1 on " in outcome.text and "train-00001-of-00002.h5" in outcome.text
    assert "rank 0 on " not in outcome.text and "Traceback" not in outcome.text and not (tmp_path / "run").exists()
