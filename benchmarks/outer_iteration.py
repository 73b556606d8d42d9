"""An outer iteration against its own bare gradient evaluations and Allreduces, interleaved in one run.

    mpiexec -n 2 python benchmarks/outer_iteration.py [--samples 5000] [--preset lsr1] [--repeats 20]

``apts_mpi/bench/step.py`` says what the floor is; ``apts-mpi bench step`` is the same measurement with all settings.
One thread a rank. Ends with status 1 above the bar.
"""

from __future__ import annotations

import argparse
import json
import sys

import torch
from steps import NETWORKS

from apts_mpi.bench import measure, step
from apts_mpi.parallel import launch
from apts_mpi.presets import PRESETS, preset

BAR = 1.15  # at 5,000 samples per rank


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=5000, help="per rank and minibatch")
    parser.add_argument("--network", choices=NETWORKS, default="mnist")
    parser.add_argument("--preset", choices=PRESETS, default="lsr1", help="the bar was set for lsr1, default %(default)s")
    parser.add_argument("--iters", type=int, default=0, help="nu of lsr1, default that of the preset")
    parser.add_argument("--repeats", type=int, default=20)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    comm = launch.start()
    shape, widths = NETWORKS[arguments.network]
    local = {"local": {"iters": arguments.iters}} if arguments.iters else {}
    config = preset(arguments.preset, model={"widths": widths}, **local)
    found = step.measure(comm, config, shape, arguments.samples, measure.Plan(arguments.repeats))
    if comm.rank == 0:
        print("\n".join(found.pop("table")))
        print(json.dumps({"network": arguments.network, "preset": arguments.preset, "ranks": comm.size, **found, "bar": BAR}))
        print(measure.line(f"n = {found['n_params']}", found) + f", bar {BAR}")
    launch.finish(comm)
    return int(found["ratio"]["median"] > BAR)


if __name__ == "__main__":
    sys.exit(main())
