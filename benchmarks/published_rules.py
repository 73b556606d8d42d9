"""Algorithm 1 with two rules of the published code in place of the paper's own: are they why its curves differ from what the paper states?

    python benchmarks/published_rules.py [--problem mnist-full-sigmoid] [--data data/mnist] [--epochs 25] [--seed 0] [--only WORD ...]
                                         [--published FILE.csv] [--out FILE]

long      each of the nu local steps may be as long as the radius, where (5) allows all of them together its Nth part
value     r_i of (4) is in the value of f_i and not in its gradient, which after the first iterations is that of another function
both      what the published code did, as far as these two go

Each line is one run of the preset `paper` (the sum of the steps) in a process of its own whose local solver is changed, four at each of
N = 2, 4 and 6 for both orders; one to two minutes a line in full batch. Beside the test accuracy stand the published one, and the longest
summed step in units of its radius. Nothing of the package is changed: the rules are no settings of it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent))

from origin import origin  # noqa: E402
from paper.cases import PROBLEMS, paper  # noqa: E402
from paper.curves import read_curve  # noqa: E402
from paper.figures import SUBDOMAINS  # noqa: E402
from paper.limits import Limits  # noqa: E402
from paper.published import read_published  # noqa: E402
from paper.repeated import after, series_name  # noqa: E402

from apts_mpi.solver import local, trust_region  # noqa: E402

RULES = ("paper", "long", "value", "both")
ORDERS = ("o1", "o2")
WORDS = ("{order} N = {subdomains}  {rule:5} {accuracy:6.2f} %  published {published:.2f} [{published_least:.2f}, {published_largest:.2f}]"
         "  {passes:6.1f} passes  ||s~|| <= {farthest:.1f} Delta")  # fmt: skip


def long_steps(subdomains: int) -> None:
    """Every local step may be as long as the radius, which (5) bounds the sum of all of them by."""
    solve, grow = local.LocalTrustRegion.solve, trust_region.next_radius

    def longer(self: local.LocalTrustRegion, start: local.LocalStart, out: Tensor) -> local.LocalResult:
        config, bound = self._config, subdomains * start.ball

        def at_most(*known: Any) -> float:
            return min(grow(*known), bound)

        local.next_radius = at_most  # type: ignore[assignment, attr-defined]
        self._config = dataclasses.replace(config, radius_start=1 / config.iters)
        try:
            return solve(self, dataclasses.replace(start, ball=config.iters * bound), out)
        finally:
            self._config, local.next_radius = config, grow  # type: ignore[attr-defined]

    local.LocalTrustRegion.solve = longer  # type: ignore[method-assign]


def value_alone() -> None:
    """f_i keeps its correction, its gradient does not have it: the first local step follows the subdomain's own gradient."""

    def begin(self: local.CorrectedLoss, start: local.LocalStart, grad: Tensor) -> float:
        self._start = start
        value = float(start.subdomain.local_from_owned(start.theta, start.share_value, start.share_grad, grad))
        self._correction.copy_(start.grad).sub_(grad)
        return value

    def evaluate(self: local.CorrectedLoss, trial: Tensor, grad: Tensor) -> Tensor:
        return self._start.subdomain.local(trial, grad) + self._along

    local.CorrectedLoss.begin = begin  # type: ignore[method-assign]
    local.CorrectedLoss.evaluate = evaluate  # type: ignore[method-assign]


def child(rule: str, subdomains: int, words: list[str]) -> int:
    """One run under a rule, in this process."""
    from apts_mpi.__main__ import main as command

    if rule in ("long", "both"):
        long_steps(subdomains)
    if rule in ("value", "both"):
        value_alone()
    return command(["train", *words])


def line(rule: str, problem: str, order: str, subdomains: int, asked: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run it, and what it came to."""
    case = paper(problem, subdomains, order, "sum", Limits(epochs=asked.epochs))
    words = [*case.words, *case.until.stops(), "--data.path", str(asked.data), "--run.dir", str(folder), "--run.monitor", "none",
             "--run.seed", str(asked.seed), "--checkpoint.keep", "1"]  # fmt: skip
    done = subprocess.run([sys.executable, __file__, "--child", rule, str(subdomains), *words], capture_output=True, text=True, check=False)
    curve = read_curve(folder)
    if done.returncode or curve is None:
        sys.exit(f"published_rules: {rule} {case.name} ended with {done.returncode}: {(done.stderr or done.stdout).strip()[-500:]}")
    end = curve.cut(case.until)
    return {"rule": rule, "order": order, "subdomains": subdomains, "accuracy": end["accuracy"], "passes": end["passes"],
            "loss_before_last": float(curve.loss[-1]), "farthest": curve.farthest, "iterations": end["iterations"]}  # fmt: skip


def main() -> int:
    if sys.argv[1:2] == ["--child"]:
        return child(sys.argv[2], int(sys.argv[3]), sys.argv[4:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problem", default="mnist-full-sigmoid", choices=list(PROBLEMS))
    parser.add_argument("--data", type=Path, default=Path("data/mnist"))
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="lines like long-o1-N2 that have one of the words")
    parser.add_argument("--published", type=Path, help="the published curves")
    parser.add_argument("--out", type=Path, help="a JSON file with the lines and what made them")
    asked = parser.parse_args()
    published = read_published(asked.published) if asked.published else {}
    lines, made_by = list[dict[str, Any]](), origin()
    for order in ORDERS:
        for subdomains in SUBDOMAINS:
            for rule in RULES:
                name = f"{rule}-{order}-N{subdomains}"
                if asked.only and not any(word in name for word in asked.only):
                    continue
                with tempfile.TemporaryDirectory() as folder:
                    found = line(rule, asked.problem, order, subdomains, asked, Path(folder) / name)
                beside = after(published.get(series_name(asked.problem, order, subdomains)), asked.epochs)
                found |= dict(zip(("published_least", "published_largest", "published"), beside, strict=True))
                print(WORDS.format(**found), flush=True)
                lines.append({name: None if value != value else value for name, value in found.items()})  # JSON has no nan
                if asked.out:
                    known = {"made_by": made_by, "problem": asked.problem, "epochs": asked.epochs, "seed": asked.seed, "lines": lines}
                    asked.out.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
