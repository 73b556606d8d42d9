"""Let a rank leave by os._exit(0) at any moment of a run on 3 ranks: no run may look finished that is not.

    python tests/campaigns/vanish.py [--cases 200] [--seed 0] [--out FILE]

A case is one run. It must end within 10 s after that rank has gone; where it went before MPI had started, which no other rank can know,
when their patience with the start is over. A completion record may be there only if it was written before the
rank left, and then it must be that of the untouched run; without one ``apts-mpi show`` must say that the run did not finish. How often the
launcher reports success, which its status alone is no proof of, is counted.
"""

from __future__ import annotations

import io
import json
import random
import sys
import tempfile
import time
from pathlib import Path

from common import LIMIT, MPIEXEC, START, Campaign, Job, arguments, make_data

from apts_mpi.parallel.launch import PATIENCE
from apts_mpi.rundir import COMPLETION, RECORDS, is_run
from apts_mpi.study.show import show_run

RANKS, ITERATIONS = 3, 25
OPTIONS = (
    f"train --data.path set --data.batch 160 --stop.epochs 0 --stop.iterations {ITERATIONS} --checkpoint.every 2 --run.device cpu "
    "--run.threads 1 --run.monitor plain --model.widths 9"
)
# Moments: a group, and how many calls of that function may pass before.
MOMENTS: dict[str, tuple[tuple[str, int], ...]] = {
    "starting": (("agree", 3), ("share", 2), ("gather", 20)),
    "iterating": (("sum", 60), ("iterate", ITERATIONS - 1)),
    "checkpointing": (("save", 8), ("own", 8), ("seal", 8), ("commit", 8)),
    "ending": (("finish", 0), ("laps", 0), ("store", 0)),
}
WRITERS = ("seal", "commit")  # what rank 0 alone does


def chosen(chance: random.Random, seconds: float) -> tuple[str, int, str, int]:
    """Group, rank, moment, number."""
    rank = chance.randrange(RANKS)
    group = chance.choice([*MOMENTS, "any time"])
    if group == "any time":
        return group, rank, "time", int(1000 * chance.uniform(0, seconds))
    moment, most = chance.choice(MOMENTS[group])
    return group, 0 if moment in WRITERS else rank, moment, chance.randint(0, most)


def said(run: Path) -> str:
    """What ``apts-mpi show`` prints."""
    text = io.StringIO()
    show_run(run, text)
    return text.getvalue()


def one(campaign: Campaign, case: int, folder: Path, whole: dict[str, object], seconds: float) -> None:
    group, rank, moment, number = chosen(campaign.chance(case), seconds)
    run, vanisher = folder / f"run-{case}", str(Path(__file__).with_name("vanisher.py"))
    mark = folder / f"left-{case}"
    job = Job(folder, RANKS, [vanisher, *OPTIONS.split(), "--run.dir", run.name], VANISH=f"{rank} {moment} {number} {mark}")
    job.find()
    gone, until = 0.0, time.monotonic() + START
    while not job.ended and not gone and time.monotonic() < until:
        gone = time.monotonic() if rank in job.pids and not job.alive(rank) else 0.0
        time.sleep(0.005)
    limit = LIMIT + (PATIENCE if moment == "time" else 0.0)  # whether MPI had started then is seen below
    status = job.wait(limit if gone else START)
    what = f"rank {rank} left at {moment} {number}"
    took = time.monotonic() - gone if gone else 0.0
    if took > LIMIT and status is not None:
        campaign.check("in _start_mpi_on_all_ranks" in job.text, case, f"{what}, and the others stayed for {took:.0f} s:\n{job.text}")
        campaign.counts["left before MPI had started, ended by the others' patience"] += 1
        took = 0.0
    if not campaign.check(status is not None, case, f"{what}, and the others stayed:\n{job.text}"):
        return
    campaign.took(took)
    done = (run / COMPLETION).exists()
    if done:
        # The record is written when all ranks have agreed on theta and sent all they know.
        record = json.loads((run / COMPLETION).read_text())
        same = all(record[name] == whole[name] for name in ("theta_sha256", "iterations", "loss", "passes", "status"))
        campaign.check(same, case, f"{what}, and the completion record is not that of the untouched run: {record}")
        campaign.counts["left when the record was there, which is right" if mark.exists() else "had ended before"] += 1
        campaign.check(group == "any time" or not mark.exists(), case, f"{what}, and there is a completion record")
        return
    campaign.counts[f"left while {group}" if group != "any time" else "left at any time"] += 1
    campaign.counts["launcher status 0 without a completion record"] += status == 0
    if is_run(run) and (run / RECORDS).exists():
        campaign.check("did not finish" in said(run), case, f"{what}, and show says:\n{said(run)}")
        campaign.counts["show says that it did not finish"] += 1


def main() -> int:
    args = arguments(__doc__, 200).parse_args()
    campaign = Campaign("vanish", args)
    if MPIEXEC is None:
        return campaign.finish("no mpiexec", good=False)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_data(folder)
        began = time.monotonic()
        job = Job(folder, RANKS, ["-m", "apts_mpi", *OPTIONS.split(), "--run.dir", "whole"])
        if job.wait(START) != 0:
            raise RuntimeError(f"the untouched run fails:\n{job.text}")
        seconds = time.monotonic() - began
        whole = json.loads((folder / "whole" / COMPLETION).read_text())
        for case in range(args.first, args.first + args.cases):
            one(campaign, case, folder, whole, seconds)
            campaign.progress(case - args.first + 1, 20)
    early = args.cases - campaign.counts["left when the record was there, which is right"] - campaign.counts["had ended before"]
    zero = campaign.counts["launcher status 0 without a completion record"]
    return campaign.finish(f"{len(campaign.failures)} false successes or hangs in {args.cases} runs, {early} of them left early; "
                           f"the launcher said 0 in {zero}")  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
