"""Tiny outer iterations in one long-lived pair of processes, with a fault every 200 of them, and what the processes hold on to.

    python tests/campaigns/soak.py [--cases 100000] [--length 5000] [--seed 0] [--out FILE]

A case is an outer iteration. Runs of ``--length`` iterations follow each other in the same two processes; in each 200 iterations one
fault comes at a random place: nan as loss or an infinite gradient on one rank, no room or EIO on rank 0's disk, a signal (stop,
checkpoint, resumption), a turned bit of theta (found, halted, resumed), a pause, a damaged newest checkpoint before a resumption. Every
run must end as it should, and descriptors, threads, memory and communicators must be level from run to run.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import random
import resource
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

from common import Campaign, arguments, make_data, on_ranks

from apts_mpi.config import Config
from apts_mpi.contracts import Status
from apts_mpi.parallel import launch
from apts_mpi.parallel.handshake import HandshakeError
from apts_mpi.presets import preset
from apts_mpi.rundir import CHECKPOINTS, COMPLETION

RANKS, GAP, KEEP = 2, 200, 2
KINDS: tuple[dict[str, Any], ...] = (
    {"name": "lsr1", "local": {"iters": 1, "memory": 2}, "global_step": {"memory": 2}},
    {"name": "default", "local": {"chunks_min": 2, "chunks_max": 2, "passes": 1}},
    {"method": "trust-region"},
    {"method": "adam"},
    {"method": "local-sgd", "baseline": {"period": 2}},
)
FAULTS = ("nan", "infinite gradient", "no room", "EIO", "signal", "bit", "pause", "damaged checkpoint")
LEVEL = 64.0  # bytes of resident memory per iteration that count as level
Plan = dict[int, tuple[str, int, int]]  # iteration: fault, rank, a random number


def settings(kind: dict[str, Any], folder: Path, run: Path, length: int) -> Config:
    return preset(
        **{"name": "default", **kind}, data={"path": str(folder / "set"), "batch": 40, "overlap": 0.0},
        model={"widths": (4,), "loss": "hurt:loss"},
        stop={"epochs": 0, "iterations": length},
        checkpoint={"every": "50", "keep": KEEP}, safety={"verify": 10},
        run={"dir": str(run), "resume": "auto", "device": "cpu", "threads": 1, "monitor": "none", "evaluate": 0},
    )  # fmt: skip


def planned(chance: random.Random, length: int) -> Plan:
    """A fault somewhere in each ``GAP`` iterations; the first 20 of them leave time to recover."""
    return {
        # There must be a second checkpoint before the newest one may be damaged.
        start + chance.randrange(20, GAP - 15): (
            chance.choice(FAULTS if start else FAULTS[:-1]), chance.randrange(RANKS), chance.getrandbits(30)
        )
        for start in range(0, length - GAP + 1, GAP)
    }  # fmt: skip


class Faults:
    """Makes the faults of a run happen on this rank, each once, however often their iteration is done again."""

    def __init__(self, rank: int, plan: Plan, length: int, counted: Callable[[str], None]) -> None:
        self._rank, self._plan, self._length, self._counted = rank, dict(plan), length, counted
        self._room_again = -1  # iteration
        self._fsync, self._limits = os.fsync, resource.getrlimit(resource.RLIMIT_FSIZE)
        self.damage = False  # to be done before the next resumption
        self.stops = 0  # that must follow

    def before(self, k: int, theta: object) -> None:
        import hurt

        # The last evaluation of an iteration is one at a trial point; after a nan at theta itself there is nothing to go back to.
        last = hurt.rearm()
        if 0 <= self._room_again <= k:
            self.mend()
        fault, rank, number = self._plan.pop(k, ("", 0, 0))
        if not fault:
            return
        self._counted(fault)
        self.stops += fault in ("signal", "bit", "damaged checkpoint")
        self.damage = fault == "damaged checkpoint"
        if rank == self._rank:
            if fault == "nan":
                hurt.counts["nan at"] = last
            elif fault == "infinite gradient":
                hurt.counts["inf at"] = last
            elif fault in ("signal", "damaged checkpoint"):
                os.kill(os.getpid(), (signal.SIGUSR1, signal.SIGTERM)[number % 2])
            elif fault == "bit":
                hurt.flip(theta, number % len(theta), 24 + number % 5)  # type: ignore[arg-type]
            elif fault == "pause":
                time.sleep(0.05 + number % 100 / 1000)
        if self._rank == 0 and fault in ("no room", "EIO"):
            self._room_again = min(k + 5 + number % 70, self._length - 10)  # a disk that is full at the end ends the run with an error
            if fault == "no room":
                resource.setrlimit(resource.RLIMIT_FSIZE, (100, self._limits[1]))
            else:
                os.fsync = self._broken

    def mend(self) -> None:
        """There is room again."""
        self._room_again, os.fsync = -1, self._fsync
        resource.setrlimit(resource.RLIMIT_FSIZE, self._limits)

    def _broken(self, handle: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def damage(run: Path) -> None:
    """Turn a bit in the newest checkpoint."""
    path = max((run / CHECKPOINTS).glob("*.h5"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def one_run(campaign: Campaign, case: int, comm: object, folder: Path, length: int) -> None:
    """A run with its faults and resumptions; every rank calls."""
    from hurt import maker

    from apts_mpi.train import run_training

    rank, run = comm.rank, folder / f"run-{case}"  # type: ignore[attr-defined]

    def counted(fault: str) -> None:
        campaign.counts[fault] += rank == 0

    faults = Faults(rank, planned(campaign.chance(case), length), length, counted)
    starts = halted = 0
    while True:
        starts += 1
        try:
            result = run_training(settings(KINDS[case % len(KINDS)], folder, run, length), comm, maker(faults.before))  # type: ignore[arg-type]
        except HandshakeError as error:
            halted += 1
            campaign.check("theta differs" in str(error), case, f"rank {rank}: ended by {error}")
            if campaign.failures:
                return
            continue
        if result.status is not Status.INTERRUPTED:
            break
        campaign.check(result.exit_code == 75, case, f"interrupted with {result.exit_code}: {result.unsaved}")
        if faults.damage and rank == 0:
            damage(run)
        faults.damage = False
        comm.barrier()  # type: ignore[attr-defined]
    faults.mend()
    if rank == 0:
        campaign.counts["resumptions"] += starts - 1
        campaign.counts["halts by a difference"] += halted
        campaign.check(result.status is Status.ITERATIONS, case, f"ended as {result.status.value} after {len(result.steps)}")
        campaign.check(len(result.steps) == length, case, f"{len(result.steps)} iterations of {length}")
        campaign.check(starts - 1 == faults.stops, case, f"{starts - 1} resumptions for {faults.stops} faults that stop a run")
        found = json.loads((run / COMPLETION).read_text())
        campaign.check(found["iterations"] == length, case, f"the record says {found['iterations']} iterations")
        left = sorted(path.name for path in (run / CHECKPOINTS).iterdir() if path.suffix in (".h5", ".json"))
        aside = len(list((run / CHECKPOINTS).glob("*.damaged")))
        campaign.check(len(left) <= 2 * KEEP + aside, case, f"checkpoints left: {left}")
        shutil.rmtree(run)


def level(campaign: Campaign, rows: list[dict[str, int]], length: int) -> None:
    """What one rank held after each run; each kind once, and a third of all, is warm-up."""
    rank, kept = rows[0]["rank"], rows[min(max(len(KINDS), len(rows) // 3), len(rows) - 1) :]
    for name in ("descriptors", "threads", "python threads", "communicators"):
        values = [row[name] for row in kept]
        campaign.check(min(values) == max(values), -1, f"rank {rank}: {name} {values} after each run")
    resident = [row["resident"] for row in kept]
    slopes = [(resident[j] - resident[i]) / ((j - i) * length) for i, j in combinations(range(len(resident)), 2)]
    slope = statistics.median(slopes) if slopes else float("nan")  # Theil's and Sen's: the allocator takes memory in leaps
    campaign.facts[f"rank {rank}"] = {
        **rows[-1], "bytes_per_iteration": slope, "resident_MB": [round(value / 1e6, 1) for value in resident],
    }  # fmt: skip
    if len(resident) * length > 20_000:  # less is told by single pages
        campaign.check(slope <= LEVEL, -1, f"rank {rank}: resident memory grows by {slope:.1f} bytes per iteration: {resident}")


def inside(args: argparse.Namespace) -> int:
    """On every rank."""
    comm = launch.start()
    from hurt import Counting, held

    from apts_mpi.parallel.comm import MpiCommunicator

    assert isinstance(comm, MpiCommunicator)
    campaign = Campaign("soak", args)
    comm = MpiCommunicator(Counting(comm.comm))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(comm.share(name))
        if comm.rank == 0:
            make_data(folder)
        comm.barrier()
        rows: list[list[dict[str, int]]] = [[] for _ in range(comm.size)]
        for case in range(args.first, args.first + args.cases // args.length):
            began = time.monotonic()
            one_run(campaign, case, comm, folder, args.length)
            mine = held()
            for rank, row in enumerate(comm.gather([float(value) for value in mine.values()])):
                rows[rank].append({"rank": rank, **{key: int(value) for key, value in zip(mine, row, strict=True)}})
            if comm.rank == 0:
                pace = 1e3 * (time.monotonic() - began) / args.length
                campaign.say(f"run {case}: {pace:.2f} ms an iteration; held {[list(each[-1].values())[1:] for each in rows]}")
        comm.barrier()
    status = 0
    if comm.rank == 0:
        for each in rows:
            level(campaign, each, args.length)
        slopes = [campaign.facts[f"rank {rank}"]["bytes_per_iteration"] for rank in range(comm.size)]
        done = args.cases // args.length * args.length
        status = campaign.finish(f"{done} iterations on {comm.size} ranks, memory {statistics.fmean(slopes):+.1f} bytes an iteration")
    failed = bool(comm.share("failed" if status else ""))
    launch.finish(comm)
    return int(failed)


def main() -> int:
    parser = arguments(__doc__, 100_000)
    parser.add_argument("--length", type=int, default=5000, help="iterations of a run; default 5000")
    args = parser.parse_args()
    if launch.launched(os.environ):
        return inside(args)
    return on_ranks(RANKS, __file__, 120 + 0.03 * args.cases)


if __name__ == "__main__":
    sys.exit(main())
