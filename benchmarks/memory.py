"""Memory of a rank in vectors of n numbers, its growth over 1,000 outer iterations, and the seconds until a run can begin.

    python benchmarks/memory.py [--out FILE.json]

Peak: resident memory at its highest in twelve outer iterations on random data, beyond what the process held with the same libraries at
work on a small network, and without what a backward pass keeps; the bar for L-SR1 is (2m + 6) vectors and 5 %, m pairs of both memories.
Growth: resident memory after 1,000 iterations against that after 100. Start: import of everything that `train` needs and MPI up on two
ranks; and `apts-mpi --help`; the best of five. Each in a process of its own, one thread. Ends with status 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from origin import origin

from apts_mpi.bench import step
from apts_mpi.config import Config
from apts_mpi.parallel.serial import SerialCommunicator
from apts_mpi.presets import preset

SHAPE, SAMPLES = (1, 28, 28), 64
WIDE, NARROW = (2048, 1536), (8,)  # n = 4.8 M; of no weight
PAIRS = 5  # of each memory
CASES: dict[str, tuple[int, dict[str, Any], str]] = {  # minibatches; settings; preset
    "lsr1": (2, {"local": {"memory": PAIRS}, "global_step": {"memory": PAIRS}}, "lsr1"),
    "lsr1, full batch": (1, {"local": {"memory": PAIRS}, "global_step": {"memory": PAIRS}}, "lsr1"),
    "default": (2, {}, "default"),
    "default, full batch": (1, {}, "default"),
    "sgd": (2, {}, "sgd"),
}
BOUND, SLACK, GROWTH = 2 * 2 * PAIRS + 6, 1.05, 1.01
BEGIN = "import apts_mpi.train; from apts_mpi.parallel import launch; launch.finish(launch.start())"
STARTS = {  # seconds at most
    "import, MPI, 2 ranks": (2.5, ["mpiexec", "-n", "2", sys.executable, "-c", BEGIN]),
    "help": (0.2, [sys.executable, "-m", "apts_mpi", "--help"]),
}


def resident(name: str) -> int:
    """Bytes by the kernel's books: VmRSS now, VmHWM at most."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return 1024 * int(line.split()[1])


def settings(case: str, widths: tuple[int, ...]) -> Config:
    """What a case runs with."""
    _, more, name = CASES[case]
    model = {"widths": widths}
    return preset("default", "sgd", model=model) if name == "sgd" else preset(name, model=model, **more)


def peak(case: str) -> dict[str, Any]:
    """Vectors of n numbers at the highest, without what a backward pass keeps."""
    batches = CASES[case][0]
    small = step.build(SerialCommunicator(), settings(case, NARROW), SHAPE, SAMPLES, batches)
    for k in range(4):
        small.step(k)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    rig = step.build(SerialCommunicator(), settings(case, WIDE), SHAPE, SAMPLES, batches)
    for k in range(12):
        rig.step(k)
    activations = 4 * SAMPLES * 4 * (sum(WIDE) + 10)  # outputs and their gradients of every layer and of what follows it, float32
    return {"n": rig.n_params, "vectors": (resident("VmHWM") - before - activations) / (4 * rig.n_params)}


def growth(case: str) -> dict[str, Any]:
    """Resident bytes after 100 and after 1,000 outer iterations."""
    rig = step.build(SerialCommunicator(), settings(case, (64,)), SHAPE, SAMPLES, CASES[case][0])
    found = {}
    for k in range(1000):
        rig.step(k)
        rig.passes.clear()  # notes of the rig's, not the package's
        if k + 1 in (100, 1000):
            found[f"after_{k + 1}"] = resident("VmRSS")
    return found


def child(what: str, case: str) -> dict[str, Any]:
    """What another process finds."""
    command = [sys.executable, __file__, "--child", what, case]
    return dict(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=600).stdout))


def seconds(command: list[str]) -> float:
    """The best of five."""
    taken = []
    for _ in range(5):
        start = perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=60)
        taken.append(perf_counter() - start)
    return min(taken)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", nargs=2, metavar=("WHAT", "CASE"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.child:
        what, case = asked.child
        print(json.dumps({"peak": peak, "growth": growth}[what](case)))
        return 0
    rows, missed = {}, 0
    for case in CASES:
        row = child("peak", case) | child("growth", case)
        bound = BOUND * SLACK if case.startswith("lsr1") else None
        grown = row["after_1000"] / row["after_100"]
        row |= {"bar": bound, "met": (bound is None or row["vectors"] <= bound) and grown <= GROWTH}
        missed += not row["met"]
        told = f", bar {bound:.1f}" if bound else ""
        print(f"{case:20s} n = {row['n']:,}: {row['vectors']:.1f} vectors{told}; 100 to 1,000 iterations: {100 * (grown - 1):+.2f} %")
        rows[case] = row
    starts = {}
    for name, (bar, command) in STARTS.items():
        taken = seconds(command)
        starts[name] = {"seconds": taken, "bar": bar, "met": taken <= bar}
        missed += taken > bar
        print(f"{name:20s} {taken:.2f} s, bar {bar}")
    if asked.out:
        asked.out.write_text(json.dumps({**origin(), "memory": rows, "start": starts}, indent=1) + "\n", encoding="utf-8")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
