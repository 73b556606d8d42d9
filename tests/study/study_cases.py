"""A small study for tests: its file, its data set, and a launcher that needs no MPI."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from apts_mpi.__main__ import main

STUDY = """
name = "tiny"
folder = "{folder}/out"
ranks = [1, 2]
samples = 40
samples_per_rank = 20
target_accuracy = 75
oversubscribe = true
[settings]
data.path = "{folder}/set"
model.widths = [4]
stop.epochs = 2
run.evaluate_iterations = 1
run.device = "cpu"
[[method]]
name = "Sweep"
preset = "default"
data.batch = 20
batch_per_rank = 10
[[method]]
name = "SGD"
method = "sgd"
baseline.lr = 0.1
data.batch = 10
batch_per_rank = 5
"""

# Takes away what start_words puts before python (-n P -N NODES) and runs the rest in one process.
LAUNCHER = "import subprocess, sys; sys.exit(subprocess.run(sys.argv[5:]).returncode)"


def launcher() -> str:
    return f"{sys.executable} -c '{LAUNCHER}'"


def write_study(folder: Path, text: str = STUDY, **replaced: str) -> Path:
    """STUDY in ``folder``, each ``old=new`` line replaced by key."""
    lines = text.format(folder=folder).splitlines()
    for key, value in replaced.items():
        lines = [f"{key} = {value}" if line.startswith(f"{key} = ") else line for line in lines]
    path = folder / "study.toml"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_data(folder: Path) -> None:
    random = np.random.default_rng(0)
    labels = np.arange(60) % 2
    inputs = (random.normal(size=(60, 8)) + 2 * labels[:, None]).astype(np.float32)
    np.savez(folder / "raw.npz", x_train=inputs[:40], y_train=labels[:40], x_test=inputs[40:], y_test=labels[40:])
    assert main(["data", "convert", "npz", str(folder / "raw.npz"), str(folder / "set")]) == 0
