"""Accuracy, gradient evaluations and reductions of the presets on MNIST and CIFAR-10, against stated bars.

    python benchmarks/accuracy.py --mnist data/mnist --cifar10 data/cifar10 [--only NAME ...] [--ranks 2] [--out FILE.json]

Every line is one run of ``mpiexec -n 2 python -m apts_mpi train`` with the constants of its preset alone: nothing is
tuned per problem. The data sets are folders written by ``apts-mpi data convert``. Ends with status 1 if a bar falls.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from launched import launch

from apts_mpi.rundir import read_run


@dataclass(frozen=True)
class Case:
    """One run and the accuracies it must show: {outer iterations: per cent}."""

    name: str
    data: str
    subdomains: int
    options: str
    bars: dict[int, float]
    reductions: int = 0  # most that the last bar may have cost; 0: any


MINIBATCH = "--data.batch 10000 --data.overlap 0.05"
SUM = "--solver.combine sum --solver.radius shared --local.iters 5 --trust_region.eta1 0.25"
NOISE = 0.5  # points: what another order of the data changes in an early figure of one seed
CASES = (
    Case("mnist default N=2", "mnist", 2, f"{MINIBATCH} --stop.epochs 12", {48: 97.5, 72: 97.9}),
    Case("mnist default N=16", "mnist", 16, f"{MINIBATCH} --stop.epochs 8", {48: 97.1}),
    Case("mnist sweep N=2", "mnist", 2, f"--preset sweep {MINIBATCH} --stop.epochs 4", {24: 97.9}),
    Case("mnist sweep N=16", "mnist", 16, f"--preset sweep {MINIBATCH} --stop.epochs 6", {36: 97.8}),
    Case("mnist full batch default N=4", "mnist", 4, "--stop.epochs 40 --run.evaluate 5", {40: 97.3}),
    Case("mnist full batch sweep N=4", "mnist", 4, "--preset sweep --stop.epochs 15", {15: 98.0}, 46),
    Case("cifar10 default N=2", "cifar10", 2, f"{MINIBATCH} --stop.epochs 10", {50: 52.0}),
    Case("cifar10 sweep N=2", "cifar10", 2, f"--preset sweep {MINIBATCH} --stop.epochs 5", {25: 54.0}),
    Case("mnist sum N=2", "mnist", 2, f"{SUM} {MINIBATCH} --stop.epochs 8", {48: 92.9 - NOISE}),
    Case("mnist sum N=8", "mnist", 8, f"{SUM} {MINIBATCH} --stop.epochs 8", {48: 91.2 - NOISE}),
)
PROVENANCE = ("git_commit", "source_sha256", "versions", "mpi_library", "data_fingerprint", "seed", "ranks", "started_utc")
NETWORK = {"mnist": "paper-mnist", "cifar10": "paper-cifar10"}


def run(case: Case, folder: Path, data: str, ranks: int) -> list[dict[str, object]]:
    """Train, and read what the records say at every bar."""
    words = [
        "-m", "apts_mpi", "train", "--data.path", data, "--model.name", NETWORK[case.data], "--solver.subdomains", str(case.subdomains),
        "--run.dir", str(folder), "--run.monitor", "none", *case.options.split(),
    ]  # fmt: skip
    launch(ranks, words)
    found = read_run(folder)
    columns, completion = found.columns, found.completion
    assert completion is not None, f"{case.name} did not finish"
    within = columns["step_norm"] <= columns["radius"] * (1 + 1e-6)
    assert within.all(), f"{case.name}: the summed step left its radius at iteration {int((~within).argmax())}, against eq. (5)"
    rows = []
    for iterations, bar in case.bars.items():
        at = slice(0, iterations)
        row = {
            "case": case.name, "options": case.options, "iterations": iterations,
            "accuracy": round(float(columns["accuracy"][iterations - 1]), 2), "bar": bar,
            "loss": float(columns["loss_new"][iterations - 1]), "reductions": int(columns["reductions"][at].sum()),
            "evaluations": round(float(columns["passes"][iterations - 1]), 1),
            "largest_step_over_radius": float((columns["step_norm"] / columns["radius"]).max()),
            "seconds": round(float(columns["time"][iterations - 1]), 1), "theta_sha256": completion.theta_sha256,
        }  # fmt: skip
        row["met"] = bool(row["accuracy"] >= bar and (not case.reductions or row["reductions"] <= case.reductions))
        row["provenance"] = {key: found.provenance[key] for key in PROVENANCE}
        rows.append(row)
    return rows


def line(row: dict[str, object]) -> str:
    verdict = "yes" if row["met"] else "NO"
    cells = (row["case"], row["iterations"], row["evaluations"], row["reductions"], row["accuracy"], f">= {row['bar']:.1f}", verdict)
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", default="data/mnist")
    parser.add_argument("--cifar10", default="data/cifar10")
    parser.add_argument("--only", nargs="*", default=[case.name for case in CASES], metavar="NAME")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--out", default="")
    arguments = parser.parse_args()
    print("| run | outer iterations | gradient evaluations, passes | n-vector reductions | test accuracy % | bar | met |")
    print("|---|---|---|---|---|---|---|", flush=True)
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES:
            if case.name in arguments.only:
                found = run(case, Path(folder) / case.name.replace(" ", "-"), getattr(arguments, case.data), arguments.ranks)
                rows += found
                print("\n".join(map(line, found)), flush=True)
                if arguments.out:
                    Path(arguments.out).write_text(json.dumps(rows, indent=1) + "\n")
    return int(not all(row["met"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
