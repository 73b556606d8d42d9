"""Kill ranks of training runs with SIGKILL, start again, and compare the end with that of a run that nobody touched.

    python tests/campaigns/kill.py [--cases 500] [--seed 0] [--out FILE]

A case is one kill: of any rank, while it starts, in an iteration, while a checkpoint is written, or at the end of the run. After
each, all ranks must end within 10 s with a status, the records must read up to there with the bits of the untouched run, and the newest
committed checkpoint must be whole. Some kills later the run is left to end, and must have the bits of the untouched one.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import numpy as np
from common import MPIEXEC, START, Campaign, Job, arguments, make_data

from apts_mpi.rundir import CHECKPOINTS, COMPLETION, RECORDS, read_run
from apts_mpi.storage.checkpoint import newest

ITERATIONS = 80
PAUSE = 0.002  # s between two looks
ENDS = f"--stop.epochs 0 --stop.iterations {ITERATIONS}"
COMMON = f"--data.path set {ENDS} --run.device cpu --run.threads 1 --run.monitor plain --model.widths 9"
SAFE = "--checkpoint.every 1 --checkpoint.keep 2 --run.resume auto"
FREE = ("time", "eta", "messages", "bytes", "seconds_")  # columns that may differ: clocks, and what a resumption sends
MOMENTS = {"starting": 1, "iterating": 4, "checkpointing": 4, "ending": 1}  # weights
KILLS = 6  # of a run, at most


@dataclass
class Kind:
    """Settings of a run, and how it ends when nobody touches it."""

    ranks: int
    options: str
    record: dict[str, object] = field(default_factory=dict)
    columns: dict[str, np.ndarray] = field(default_factory=dict)


KINDS = [Kind(ranks, f"--preset {name} {batch}") for name, batch, ranks in product(
    ("lsr1", "default"), ("--data.batch 0", "--data.batch 160 --data.overlap 0.1"), (2, 3))]  # fmt: skip


def words(kind: Kind, more: str) -> list[str]:
    return f"-m apts_mpi train {COMMON} {kind.options} {more}".split()


def record(run: Path) -> dict[str, object]:
    """What the completion record says of the trajectory; empty without one."""
    if not (run / COMPLETION).exists():
        return {}
    found = json.loads((run / COMPLETION).read_text())
    return {name: found[name] for name in ("status", "iterations", "loss", "accuracy", "passes", "reductions", "theta_sha256")}


def trajectory(run: Path) -> dict[str, np.ndarray]:
    return {name: values for name, values in read_run(run).columns.items() if not name.startswith(FREE)}


def prepare(folder: Path, kind: Kind) -> None:
    """The untouched run."""
    name = f"whole-{KINDS.index(kind)}"
    job = Job(folder, kind.ranks, words(kind, f"--run.dir {name} --checkpoint.every off"))
    if job.wait(START) != 0:
        raise RuntimeError(f"the untouched run fails:\n{job.text}")
    kind.record, kind.columns = record(folder / name), trajectory(folder / name)


def lines(run: Path) -> int:
    """Iterations in the records so far."""
    try:
        return max((run / RECORDS).read_bytes().count(b"\n") - 1, 0)
    except OSError:
        return 0


def writing(run: Path) -> bool:
    """Whether a checkpoint is being written."""
    return any(entry.name.endswith(".tmp") for entry in (run / CHECKPOINTS).glob(".*"))


def reach(job: Job, run: Path, moment: str, chance: random.Random) -> bool:
    """Wait for the moment; False if the job ended before."""
    before, until = lines(run), time.monotonic() + START
    if not job.find():
        return False
    if moment == "starting":
        time.sleep(chance.uniform(0, 2.5))
        return not job.ended
    goal = ITERATIONS if moment == "ending" else min(before + chance.randint(1, ITERATIONS // 3), ITERATIONS)
    while lines(run) < goal or (moment == "checkpointing" and not writing(run)):
        if job.ended or time.monotonic() > until:
            return False
        time.sleep(PAUSE)
    time.sleep(chance.choice([0, 0, 0.002, 0.02]) * chance.random() if moment != "ending" else chance.uniform(0, 0.05))
    return not job.ended


def look(campaign: Campaign, case: int, kind: Kind, run: Path) -> None:
    """The records and checkpoints that a killed run leaves."""
    if not run.exists() or not (run / RECORDS).exists():
        return
    found = trajectory(run)
    count = len(found.get("iteration", ()))
    for name, values in found.items():
        if name != "status" or count:
            same = np.array_equal(values, kind.columns[name][:count], equal_nan=values.dtype.kind == "f")
            campaign.check(same, case, f"{run}: column {name} is not that of the untouched run up to iteration {count}")
    checkpoint, problems = newest(run / CHECKPOINTS)
    campaign.check(not problems, case, f"{run}: a committed checkpoint is not whole: {problems}")
    if checkpoint is not None:
        campaign.counts["checkpoints found whole"] += 1


def kill_once(campaign: Campaign, case: int, kind: Kind, folder: Path, run: Path) -> bool:
    """One start and one kill; False if it had ended by itself before."""
    chance = campaign.chance(case)
    moment, rank = chance.choices(list(MOMENTS), list(MOMENTS.values()))[0], chance.randrange(kind.ranks)
    if lines(run) == ITERATIONS:  # it will add none
        moment = "starting"
    if moment == "checkpointing" and chance.random() < 0.7:
        rank = 0  # who writes
    job = Job(folder, kind.ranks, words(kind, f"--run.dir {run.name} {SAFE}"))
    hit = reach(job, run, moment, chance) and job.kill(rank)
    began = time.monotonic()
    status = job.wait(10.0 if hit else START)
    if campaign.check(status is not None, case, f"killed rank {rank} while {moment}, and the others stayed:\n{job.text}"):
        campaign.took(time.monotonic() - began if hit else 0.0)
    if not hit:
        campaign.check(status == 0, case, f"status {status} of a run that was not killed:\n{job.text}")
        return False
    campaign.counts[f"killed while {moment}"] += 1
    campaign.counts["killed rank 0"] += rank == 0
    finished = (run / COMPLETION).exists()
    campaign.counts["killed when the record was there already"] += finished
    campaign.counts["launcher status 0"] += status == 0
    campaign.check(status != 0 or finished, case, f"status 0 after rank {rank} was killed while {moment}:\n{job.text}")
    look(campaign, case, kind, run)
    return not finished


def end(campaign: Campaign, case: int, kind: Kind, folder: Path, run: Path) -> None:
    """Let the run end, and compare."""
    if not (run / COMPLETION).exists():
        job = Job(folder, kind.ranks, words(kind, f"--run.dir {run.name} {SAFE}"))
        status = job.wait(START)
        campaign.check(status == 0, case, f"{run}: status {status} of the last start:\n{job.text}")
    found = record(run)
    if campaign.check(found == kind.record, case, f"{run} ended as {found}, the untouched run as {kind.record}"):
        columns = trajectory(run)
        same = all(np.array_equal(columns[name], kind.columns[name], equal_nan=columns[name].dtype.kind == "f") for name in kind.columns)
        campaign.check(same and list(columns) == list(kind.columns), case, f"{run}: the records are not those of the untouched run")
        campaign.counts["runs compared to the last bit"] += 1


def main() -> int:
    args = arguments(__doc__, 500).parse_args()
    campaign = Campaign("kill", args)
    if MPIEXEC is None:
        return campaign.finish("no mpiexec", good=False)
    with tempfile.TemporaryDirectory() as name:
        folder, case, index = Path(name), args.first, 0
        make_data(folder)
        while case < args.first + args.cases:
            kind = KINDS[index * 3 % len(KINDS)]  # 3: neighbours differ in all three
            if not kind.record:
                prepare(folder, kind)
            run, last = folder / f"run-{index}", min(case + KILLS, args.first + args.cases)
            while case < last and kill_once(campaign, case, kind, folder, run):
                case += 1
                campaign.progress(case - args.first, 20)
            case += case < last  # ended or finished by itself: the case is spent
            end(campaign, case - 1, kind, folder, run)
            index += 1
    kills = sum(count for name, count in campaign.counts.items() if name.startswith("killed while"))
    return campaign.finish(f"{kills} kills, {campaign.counts['runs compared to the last bit']} of {index} runs end as the untouched ones")


if __name__ == "__main__":
    sys.exit(main())
