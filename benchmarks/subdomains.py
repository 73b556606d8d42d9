"""What a sample costs with many subdomains on a rank against one on each, interleaved in one run, one thread a rank.

    python benchmarks/subdomains.py [--ranks 1 2] [--samples 10000] [--shape mnist cifar10] [--rounds 15] [--out FILE.json]

Seconds of the default for each gradient evaluation of ``--samples`` in all, the losses and sums of its outer iterations with it, at N = 16
over those at N = the ranks. A minibatch of random data, about two minutes a line. Ends with status 1 above the bar.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from launched import launch
from origin import origin
from quasi_newton import interval
from steps import NETWORKS

MANY, BAR = 16, 1.15
WORDS = ("{shape}, n = {n_params}, on {ranks}: N = {N[1]} / N = {N[0]} per sample {ratio:.2f} [{interval[0]:.2f}, {interval[1]:.2f}], "
         "{seconds[0]:.2f} s and {seconds[1]:.2f} s a pass")  # fmt: skip


def measure(ranks: int, shape: str, samples: int, rounds: int) -> dict[str, Any]:
    """One line."""
    few, many = f"sweep-N{ranks}", f"sweep-N{MANY}"
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "seconds.json"
        words = ["--out", str(out), "--cases", f"{few},{many}", "--shape", shape, "--samples", str(samples // ranks), "--batches", "2"]
        launch(ranks, [str(Path(__file__).with_name("steps.py")), *words, "--rounds", str(rounds), "--gradients", "1"])
        found = json.loads(out.read_text(encoding="utf-8"))
    seconds = {name: found["cases"][name]["seconds"] for name in (few, many)}
    ratios = [a / b for a, b in zip(seconds[many], seconds[few], strict=True)]
    ratio = statistics.median(ratios)
    return {
        "ranks": ranks, "shape": shape, "n_params": found["n_params"], "samples": samples, "N": [ranks, MANY], "ratio": ratio,
        "interval": interval(ratios), "seconds": [statistics.median(seconds[name]) for name in (few, many)], "met": ratio <= BAR,
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2], choices=(1, 2, 4, 8))
    parser.add_argument("--samples", type=int, default=10_000, help="of a minibatch, on all ranks [%(default)s]")
    parser.add_argument("--shape", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--rounds", type=int, default=15, help="counted pairs [%(default)s]")
    parser.add_argument("--out", type=Path, help="a JSON file with the lines and what made them")
    asked = parser.parse_args()
    lines = []
    for shape in asked.shape:
        for ranks in asked.ranks:
            found = measure(ranks, shape, asked.samples, asked.rounds)
            lines.append(found)
            print(WORDS.format(**found), flush=True)
            if asked.out:
                facts = {"bar": BAR, "load": os.getloadavg(), **origin()}
                asked.out.write_text(json.dumps({**facts, "lines": lines}, indent=1) + "\n", encoding="utf-8")
    return int(not all(line["met"] for line in lines))


if __name__ == "__main__":
    sys.exit(main())
