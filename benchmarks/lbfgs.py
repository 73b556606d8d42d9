"""L-BFGS-B of SciPy on the problems with a known answer, for what one core and a whole gradient at a time can reach.

    python benchmarks/lbfgs.py [--pairs 10 50] [--seeds 3] [--passes 1000] [--poisson data/poisson] [--fit data/fit] [--out FILE]

Starts from the parameters that a run of the same seed starts from, takes at most so many gradient evaluations of the whole training set,
and shows the training loss and the error of u at its end, as `python benchmarks/paper beyond` does for other methods; about 20 s a line.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import scipy
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize

sys.path.insert(0, str(Path(__file__).resolve().parent))

from paper.worth import error  # noqa: E402

from apts_mpi.config import ModelConfig  # noqa: E402
from apts_mpi.problem.flat import FlatModel  # noqa: E402
from apts_mpi.problem.losses import resolve_loss  # noqa: E402
from apts_mpi.problem.models import build_model  # noqa: E402
from apts_mpi.provenance import commit, cpu  # noqa: E402
from apts_mpi.storage.shards import open_dataset  # noqa: E402

MODELS = {"poisson": "poisson", "fit": "tanh"}


@dataclass
class Mean:
    """f of eq. (1) over the whole training set, float64, and how often it was asked for."""

    flat: FlatModel
    inputs: torch.Tensor
    targets: torch.Tensor
    asked: int = 0
    grad: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.grad = torch.zeros(self.flat.n_params, dtype=torch.float64)

    def __call__(self, theta: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        self.asked += 1
        self.flat.point(torch.from_numpy(theta.copy()), self.grad.zero_())
        loss = resolve_loss("mse")(self.flat.module(self.inputs), self.targets).mean()
        loss.backward()
        return float(loss.detach()), self.grad.numpy().copy()


def solve(problem: str, folder: Path, pairs: int, seed: int, passes: int) -> dict[str, object]:
    """One line of the table."""
    train = open_dataset(folder).split("train")
    inputs, targets = (torch.from_numpy(part).double() for part in train.read(0, train.samples))
    model = ModelConfig(name=MODELS[problem], loss="mse", dtype="float64")
    module = build_model(model, train.sample_shape, int(np.prod(train.target_shape)), seed)
    mean = Mean(FlatModel(module, torch.float64, torch.device("cpu")), inputs, targets)
    options = {"maxcor": pairs, "maxfun": passes, "maxiter": passes, "ftol": 0.0, "gtol": 0.0}
    found = minimize(mean, mean.flat.initial().numpy(), jac=True, method="L-BFGS-B", options=options)
    mean.flat.restore(torch.from_numpy(found.x))
    return {"problem": problem, "pairs": pairs, "seed": seed, "passes": mean.asked, "loss": found.fun, "error": error(mean.flat.module)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, nargs="+", default=[10, 50])
    parser.add_argument("--seeds", type=int, default=3, help="0, 1000, ... [3]")
    parser.add_argument("--passes", type=int, default=1000)
    for name in MODELS:
        parser.add_argument(f"--{name}", type=Path, default=Path("data") / name)
    parser.add_argument("--out", type=Path, help="a JSON file with the lines and what made them")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    lines = []
    for problem in MODELS:
        for pairs in asked.pairs:
            for seed in range(0, 1000 * asked.seeds, 1000):
                line = solve(problem, getattr(asked, problem), pairs, seed, asked.passes)
                print("{problem:8} {pairs:3d} pairs  seed {seed:4d}  {passes} passes  loss {loss:.2e}  error {error:.2e}".format(**line))
                lines.append(line)
    if asked.out:
        package = Path(__file__).resolve().parents[1] / "apts_mpi"
        made = {"commit": commit(package), "cpu": cpu(), "numpy": np.__version__, "scipy": scipy.__version__, "torch": torch.__version__}
        asked.out.write_text(json.dumps({"made_by": made, "lines": lines}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
