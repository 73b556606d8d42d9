"""A small checkpoint that holds a little of everything."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from apts_mpi.storage import checkpoint


def make_checkpoint(folder: Path) -> Path:
    facts = {"iteration": 2, "subdomains": 3, "settings": {"run.name": "x"}, "layout": "", "data": "", "arithmetic": ""}
    facts |= {"messages": 0, "bytes": 0, "seconds": 0.0, "accuracy": None}
    shared = {"radius": np.array([0.5]), "pairs": np.arange(10.0).reshape(2, 5)}
    own = [{"radius": np.array([0.1 * k])} for k in range(3)]
    state = checkpoint.Checkpoint(1, facts, np.arange(5, dtype=np.float32), shared, own, b"iteration\n0\n1\n")
    checkpoint.write(folder / "checkpoints", state, 2)
    return folder / "checkpoints" / "000001.h5"
