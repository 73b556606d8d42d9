"""Seconds and CPU seconds per gradient evaluation of several methods, in turn in one process, on random data.

    mpiexec -n 2 python benchmarks/steps.py --out FILE.json [--cases apts-5,sgd,overlapped] [--samples 64] [--shape cifar10]
        [--rounds 20] [--gradients 8] [--latency 50e-6 --bandwidth 1.25e9 --network-ranks 64] [--alone]

A round gives every case a block of outer iterations, as many as make about --gradients gradient evaluations; the first two rounds
are not counted. A gradient evaluation is a gradient of --samples samples on every rank; loss values without a gradient cost time but
are not counted. Of every block the slowest rank counts; CPU seconds (user and system) are those of all ranks, divided by the ranks.
With --alone the ranks work on problems of their own and send nothing: what the machine itself takes from those who share it.
One thread a rank. bars.py starts this program and judges.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from apts_mpi.bench import step
from apts_mpi.bench.measure import clock
from apts_mpi.config import Config
from apts_mpi.contracts import Communicator, Status
from apts_mpi.parallel import launch
from apts_mpi.parallel.serial import SerialCommunicator
from apts_mpi.presets import preset

WARM_UP = 2  # rounds
CHUNKS = 30  # of "sweep-chunks": --samples are those of a chunk, as SGD has them in a step
NETWORKS = {"mnist": ((1, 28, 28), (512, 256)), "cifar10": ((3, 32, 32), (512, 512))}
CASES: dict[str, Callable[..., Config]] = {
    **{f"apts-{nu}": lambda nu=nu, **more: preset("lsr1", local={"iters": nu}, **more) for nu in (5, 10, 20)},
    "apts-first-5": lambda **more: preset("lsr1", local={"iters": 5}, global_step={"solver": "first"}, **more),
    "lsr1": lambda **more: preset("lsr1", **more),
    "sweep": lambda **more: preset("default", **more),
    **{f"sweep-N{N}": lambda N=N, **more: preset("default", solver={"subdomains": N}, **more) for N in (1, 2, 4, 8, 16, 32)},
    "sweep-chunks": lambda **more: preset("default", local={"chunk": 1, "chunks_max": CHUNKS}, **more),
    "sgd": lambda **more: preset("default", "sgd", **more),
    "overlapped": lambda **more: preset("default", "sgd", baseline={"overlap": True}, **more),
}


def cpu_seconds() -> float:
    """User and system time of this process so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


class Case:
    """One method, and what its blocks took."""

    def __init__(self, name: str, comm: Communicator, working: Communicator, args: argparse.Namespace) -> None:
        network = {"emulate_latency": args.latency, "emulate_bandwidth": args.bandwidth, "emulate_ranks": args.network_ranks}
        shape, widths = NETWORKS[args.shape]
        config = CASES[name](model={"widths": args.widths or widths}, comm=network)
        many = CHUNKS if name == "sweep-chunks" else 1
        self.rig = step.build(working, config, shape, args.samples * many, max(2, args.batches // many))
        self.name, self._comm, self._per_gradient, self._wanted = name, comm, args.samples * working.size, args.gradients
        self._k, self._iterations = 0, 1
        self.seconds, self.cpu, self.gradients, self.values = (list[float]() for _ in range(4))

    def block(self, counted: bool) -> None:
        """Some outer iterations; every rank calls."""
        done, own = [0, 0], list[float]()
        taken = clock(self._comm, lambda: own.append(self._iterate(done)))
        used = sum(row[0] for row in self._comm.gather(own)) / self._comm.size
        gradients = done[0] / self._per_gradient
        if counted:
            self.seconds.append(taken / gradients)
            self.cpu.append(used / gradients)
            self.gradients.append(gradients)
            self.values.append(done[1] / self._per_gradient)
        else:
            self._iterations = max(1, round(self._wanted * self._iterations / gradients))

    def _iterate(self, done: list[int]) -> float:
        """A block; adds up (gradient samples, value samples) in ``done``, returns CPU seconds without the waits around it."""
        before = cpu_seconds()
        for _ in range(self._iterations):
            info = self.rig.step(self._k)
            if info.status is not Status.RUNNING:
                raise RuntimeError(f"{self.name} came to its end ({info.status.value}) after {self._k} iterations: give it more --batches")
            self._k += 1
            done[0] += info.gradient_samples
            done[1] += info.value_samples
        return cpu_seconds() - before

    def found(self) -> dict[str, Any]:
        return {
            "seconds": self.seconds, "cpu_seconds": self.cpu, "gradients": self.gradients, "values": self.values,
            "iterations_per_block": self._iterations,
        }  # fmt: skip


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="JSON to write")
    parser.add_argument("--cases", default="apts-5,sweep,sgd", help=f"of {', '.join(CASES)}")
    parser.add_argument("--samples", type=int, default=64, help="per rank and minibatch")
    parser.add_argument("--shape", choices=NETWORKS, default="cifar10")
    parser.add_argument("--widths", type=lambda text: tuple(map(int, text.split(","))), help="hidden layers in place of the shape's own")
    parser.add_argument("--batches", type=int, default=16, help="minibatches of the random data")
    parser.add_argument("--rounds", type=int, default=20, help="counted ones")
    parser.add_argument("--gradients", type=float, default=8, help="evaluations in a block, about")
    parser.add_argument("--latency", type=float, default=0.0, help="of an emulated network, s")
    parser.add_argument("--bandwidth", type=float, default=0.0, help="of it, bytes/s")
    parser.add_argument("--network-ranks", type=int, default=0, help="that it is said to join; 0: those there are")
    parser.add_argument("--alone", action="store_true", help="ranks that have nothing to do with each other")
    return parser.parse_args()


def main() -> int:
    args = parse()
    torch.set_num_threads(1)
    comm = launch.start()
    working: Communicator = SerialCommunicator() if args.alone else comm
    cases = [Case(name, comm, working, args) for name in args.cases.split(",")]
    for index in range(WARM_UP + args.rounds):
        for case in cases if index % 2 else cases[::-1]:
            case.block(index >= WARM_UP)
    if comm.rank == 0:
        facts = {"ranks": comm.size, "alone": args.alone, "n_params": cases[0].rig.n_params, "library": comm.library}
        content = {**facts, "options": vars(args), "cases": {case.name: case.found() for case in cases}}
        Path(args.out).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    launch.finish(comm)
    return 0


if __name__ == "__main__":
    sys.exit(main())
