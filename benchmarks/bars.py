"""Measure the bars that the package sets itself and say of each whether it is met.

    python benchmarks/bars.py [--only 3 5] [--quick] [--out FILE.json]

3  sums and bytes of an outer iteration on 2 ranks are exactly those of docs/method.md, all presets, full batch and minibatch
4  a planned message against a bare MPI_Allreduce of the same buffer, 2 ranks: at most 1.10 from 65,536 bytes on; what is shorter
   is mostly the interpreter's time and is told only
5  torch's DistributedDataParallel over gloo against our per-step SGD, 2 ranks: at least 2 at 16 samples a rank, never below 1
6  emulated network, 50 us and 1.25 GB/s, 64 samples a rank, n = 1,841,162, 2 ranks that act as 2 and as 64: seconds of SGD per
   gradient evaluation over those of APTS with nu = 5: at least 2.2 (blocking) and 1.9 (overlapped); other nu, a first-order global step
   and the sweep are told, the sweep also with 30 chunks of 64 samples a rank in place of 64 samples in all
7  weak scaling, samples per rank fixed: time of 1 rank over that of 2 at least 0.95, told beside what two serial runs side by side
   lose on this machine; CPU seconds per gradient on 8 ranks that share the cores at most 1.08 of one rank's

Starts what it needs under the mpiexec of this environment, one thing after the other, one thread a rank. A line is
"number, ratio, median [95 % bootstrap interval], bar, verdict, base in absolute terms"; the median is judged. What is compared runs in
turn. --quick is a test of this program: small problems and few repeats, whose times say nothing, so that bar 3 alone is judged.
Ends with status 1 if a bar is not met.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from bar_parts import bar_3, bar_4, bar_5
from bar_speed import bar_6, bar_7
from verdicts import Row

from apts_mpi import provenance

BARS: dict[int, Callable[[bool], Iterator[Row]]] = {3: bar_3, 4: bar_4, 5: bar_5, 6: bar_6, 7: bar_7}
FACTS = ("package_version", "source_sha256", "git_commit", "versions", "system", "started_utc", "command", "hosts")


def document(rows: list[Row], quick: bool) -> dict[str, Any]:
    """The rows, and everything needed to judge them."""
    facts = provenance.collect(
        config_sha256="", seed=0, data="", mpi_library="", hosts=[socket.gethostname()], threads=1, devices=["cpu"], n_params=0,
        subdomains=0,
    )  # fmt: skip
    kept: dict[str, Any] = {name: facts[name] for name in FACTS} | {"cores": len(os.sched_getaffinity(0)), "load": os.getloadavg()}
    return {"format": "apts-mpi bars", "quick": quick, "rows": [row.plain() for row in rows], "provenance": kept}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", type=int, choices=BARS, default=list(BARS), metavar="N", help="these bars alone")
    parser.add_argument("--quick", action="store_true", help="small and short, to see that everything runs")
    parser.add_argument("--out", metavar="FILE", help="JSON to write, after every bar")
    args = parser.parse_args()
    rows: list[Row] = []
    for number in args.only:
        for row in BARS[number](args.quick):
            rows.append(replace(row, bar=None) if args.quick and number > 3 else row)
            print(rows[-1].text(), flush=True)
        if args.out:
            Path(args.out).write_text(json.dumps(document(rows, args.quick), indent=1) + "\n", encoding="utf-8")
    fallen = [row for row in rows if row.met is False]
    print(f"{len(rows)} ratios, {sum(row.met is True for row in rows)} met, {len(fallen)} NOT MET")
    return int(bool(fallen))


if __name__ == "__main__":
    sys.exit(main())
