"""Train a small network on 1, 2, 4 and 8 ranks of the MPI beside this interpreter; print the one hash of the parameters.

    python tests/launch/same_bits.py

Prints one line, "theta_sha256 HASH", and ends with status 0 if the final parameters have the same bits on 1, 2, 4 and 8 ranks
and without a launcher. The line must also be the same under every MPI: compare it between environments with the same torch.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from launcher import ENVIRONMENT, MPIEXEC, ROOT, Outcome, ended

__all__ = ["ENVIRONMENT", "MPIEXEC", "OPTIONS", "ROOT", "make_data", "theta_hash", "train"]

OPTIONS = (
    "--preset default --solver.subdomains 8 --data.batch 160 --data.overlap 0.1 --model.widths 9 --stop.epochs 2 "
    "--run.device cpu --run.threads 1 --run.monitor plain"
)
CLASSES = 3


def make_data(folder: Path, count: int = 3, samples: int = 320) -> Path:
    """Small images in classes that a network can tell apart: class c is bright in row c."""
    from apts_mpi.storage.convert import convert

    rng, arrays = np.random.default_rng(1), {}
    for split, size in (("train", samples), ("test", 40)):
        labels = rng.integers(0, CLASSES, size)
        images = rng.integers(0, 100, (size, 1, CLASSES, 4), dtype=np.uint8)
        images[np.arange(size), 0, labels] += 150
        arrays |= {f"x_{split}": images, f"y_{split}": labels}
    np.savez(folder / "raw.npz", **arrays)
    convert("npz", folder / "raw.npz", folder / "set", shards=count)
    return folder / "set"


def train(folder: Path, ranks: int, options: str, limit: float = 60.0, through: Sequence[str] = ()) -> Outcome:
    """``python THROUGH -m apts_mpi train`` in ``folder`` on so many ranks, 0 being without a launcher; TimeoutError if it hangs."""
    launcher = [str(MPIEXEC), "-n", str(ranks)] if ranks else []
    return ended([*launcher, sys.executable, *through, "-m", "apts_mpi", "train", *options.split()], folder, limit)


def theta_hash(folder: Path, ranks: int) -> str:
    """The hash in the completion record of a run on so many ranks."""
    outcome = train(folder, ranks, f"--data.path set --run.dir run-{ranks} {OPTIONS}")
    if outcome.status:
        raise RuntimeError(f"{ranks} ranks ended with status {outcome.status}:\n{outcome.text}")
    return str(json.loads((folder / f"run-{ranks}" / "completion.json").read_text())["theta_sha256"])


def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        make_data(Path(name))
        found = {ranks: theta_hash(Path(name), ranks) for ranks in (0, 1, 2, 4, 8)}
    for ranks, value in found.items() if len(set(found.values())) > 1 else [(0, found[0])]:
        print("theta_sha256", value, *([f"on {ranks} ranks"] if len(set(found.values())) > 1 else []))
    return int(len(set(found.values())) > 1)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
