"""An outer iteration against its own bare gradient evaluations and Allreduces, interleaved in one run.

    mpiexec -n 2 python benchmarks/outer_iteration.py [--samples 5000] [--preset lsr1] [--repeats 20] [--out FILE]

``apts_mpi/bench/step.py`` says what the floor is; ``apts-mpi bench step`` is the same measurement with all settings.
One thread a rank. Ends with status 1 above the bar, 1.05 from 5,000 samples on, else 1.10.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from origin import origin
from steps import NETWORKS

from apts_mpi.bench import measure, step
from apts_mpi.parallel import launch
from apts_mpi.presets import PRESETS, preset

BARS = {5000: 1.05, 2000: 1.10}  # by samples of a rank, at least so many


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=5000, help="per rank and minibatch")
    parser.add_argument("--network", choices=NETWORKS, default="mnist")
    parser.add_argument("--preset", choices=PRESETS, default="lsr1", help="the bar was set for lsr1, default %(default)s")
    parser.add_argument("--iters", type=int, default=0, help="nu of lsr1, default that of the preset")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--out", type=Path, help="where to write the figures as JSON, with their provenance")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    comm = launch.start()
    shape, widths = NETWORKS[arguments.network]
    local = {"local": {"iters": arguments.iters}} if arguments.iters else {}
    config = preset(arguments.preset, model={"widths": widths}, **local)
    found = step.measure(comm, config, shape, arguments.samples, measure.Plan(arguments.repeats))
    bar = next((bar for samples, bar in BARS.items() if arguments.samples >= samples), max(BARS.values()))
    met = found["ratio"]["median"] <= bar
    if comm.rank == 0:
        print("\n".join(found.pop("table")))
        print(measure.line(f"n = {found['n_params']}", found) + f", bar {bar}")
        if arguments.out:
            named = {"network": arguments.network, "preset": arguments.preset, "ranks": comm.size}
            facts = {**named, **found, "bar": bar, "met": met, **origin()}
            arguments.out.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    launch.finish(comm)
    return int(not met)


if __name__ == "__main__":
    sys.exit(main())
