"""Train a small network on 1, 2, 4 and 8 ranks of the MPI beside this interpreter; print the one hash of the parameters.

    python tests/launch/same_bits.py

Prints one line, "theta_sha256 HASH", and ends with status 0 if the final parameters have the same bits on 1, 2, 4 and 8 ranks
and without a launcher. The line must also be the same under every MPI: compare it between environments with the same torch.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
BESIDE = Path(sys.executable).parent / "mpiexec"
MPIEXEC = str(BESIDE) if BESIDE.exists() else shutil.which("mpiexec")
OPTIONS = (
    "--preset sweep --solver.subdomains 8 --data.batch 160 --data.overlap 0.1 --model.widths 9 --stop.epochs 2 "
    "--run.device cpu --run.threads 1 --run.monitor plain"
)
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MPIR_CVAR_ENABLE_HEAVY_YIELD": "1",
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "OMPI_MCA_mpi_yield_when_idle": "1",
    "OMPI_MCA_pml": "ob1",
    "OMPI_MCA_btl": "self,sm",
}
CLASSES = 3


@dataclass
class Outcome:
    """How a command ended."""

    status: int
    text: str  # stdout and stderr


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


def train(folder: Path, ranks: int, options: str, limit: float = 60.0) -> Outcome:
    """``python -m apts_mpi train`` in ``folder`` on so many ranks, 0 being without a launcher; TimeoutError if it hangs."""
    launcher = [str(MPIEXEC), "-n", str(ranks)] if ranks else []
    command = [*launcher, sys.executable, "-m", "apts_mpi", "train", *options.split()]
    path = os.pathsep.join([str(ROOT), str(folder)])
    # A file, not a pipe: a grandchild that outlives the launcher would keep a pipe open.
    with open(folder / "output", "w+b") as output:
        process = subprocess.Popen(
            command, env={**os.environ, **ENVIRONMENT, "PYTHONPATH": path}, cwd=folder, stdin=subprocess.DEVNULL, stdout=output,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            status = process.wait(limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            status = None
        output.seek(0)
        text = output.read().decode(errors="replace")
    if status is None:
        raise TimeoutError(f"still running after {limit:g} s; so far:\n{text}")
    return Outcome(status, text)


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
