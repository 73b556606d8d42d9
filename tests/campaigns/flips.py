"""Turn one bit of theta on one rank, and see whether the next comparison finds it, names the rank and heals it.

    python tests/campaigns/flips.py [--cases 100] [--ranks 3] [--seed 0] [--out FILE]

A case is a turned bit: of a random entry, on a random rank, at a random iteration between two comparisons (``safety.verify`` = K). With
three ranks and more the next comparison must name that rank, and heal it: all go on alike. With two it must be found, which ends the
run; the campaign then begins another one. A bit that is rounded away when the next step is added is gone before the comparison: it
counts apart, and theta must then have the same bits on all ranks.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path
from unittest.mock import patch

import torch
from common import Campaign, arguments, make_data, on_ranks

from apts_mpi.config import Config
from apts_mpi.contracts import Status
from apts_mpi.parallel import launch
from apts_mpi.parallel.handshake import HandshakeError
from apts_mpi.presets import preset

EVERY, PERIOD = 4, 12  # K; a bit is turned in the first K iterations of each period, the rest is there to recover
FLIPS = 8  # in a run
KINDS = (("lsr1", 0), ("lsr1", 96), ("default", 96), ("default", 0))  # preset, data.batch
NAMED = re.compile(r"after iteration ([0-9]+) theta of rank ([0-9]+) on \S+ is not that of")
Flip = tuple[int, int, int, int]  # iteration, rank, entry, bit


def settings(folder: Path, kind: tuple[str, int], ranks: int) -> Config:
    return preset(
        kind[0], data={"path": str(folder / "set"), "batch": kind[1]}, model={"widths": (9,)}, solver={"subdomains": ranks},
        stop={"epochs": 0, "iterations": FLIPS * PERIOD, "nonfinite": 100},
        safety={"verify": EVERY, "on_difference": "heal" if ranks > 2 else "halt"}, checkpoint={"every": "off"},
        run={"dir": str(folder / "run"), "device": "cpu", "threads": 1, "monitor": "none", "evaluate": 0},
    )  # fmt: skip


class Watched:
    """Turns the bits, and notes what the comparisons say and how theta looked then."""

    def __init__(self, campaign: Campaign, first: int, count: int, rank: int, ranks: int) -> None:
        self._rank, self.done = rank, 0  # flips so far
        self.flips: list[Flip] = []
        for index in range(count):
            chance = campaign.chance(first + index)
            place = chance.randrange(ranks), chance.getrandbits(30), chance.randrange(32)
            self.flips.append((index * PERIOD + chance.randrange(EVERY), *place))
        self.said: dict[int, tuple[str, bool]] = {}  # after how many iterations: what was said, whether theta was the same everywhere

    def before(self, k: int, theta: torch.Tensor) -> None:
        from hurt import flip

        if self.done < len(self.flips) and self.flips[self.done][0] == k:
            _, rank, entry, bit = self.flips[self.done]
            self.done += 1
            if rank == self._rank:
                flip(theta, entry % len(theta), bit)

    def check(self, comm: object, stepper: object, heal: bool, iterations: int) -> str:
        """In the place of ``drift.check``, which it calls."""
        theta = stepper.theta  # type: ignore[attr-defined]
        alike = len(set(comm.gather_text(theta.numpy().tobytes().hex()))) == 1  # type: ignore[attr-defined]
        self.said[iterations] = ("raised", alike)
        told = self.real(comm, stepper, heal, iterations)  # type: ignore[arg-type]
        again = len(set(comm.gather_text(theta.numpy().tobytes().hex()))) == 1  # type: ignore[attr-defined]
        self.said[iterations] = (told if again else f"NOT HEALED: {told}", alike)
        return told

    @staticmethod
    def real(comm: object, stepper: object, heal: bool, iterations: int) -> str:
        raise NotImplementedError


def judge(campaign: Campaign, case: int, flip: Flip, said: dict[int, tuple[str, bool]], ranks: int) -> None:
    """One turned bit, by the first comparison after it and those until the next one."""
    k, rank, _, bit = flip
    # A run compares early where it is about to end: by a nan that the bit has made of theta, say.
    due = min(done for done in [*said, 1 << 30] if done > k)
    if not campaign.check(due <= k // EVERY * EVERY + EVERY, case, f"no comparison within {EVERY} iterations after {k}: {sorted(said)}"):
        return
    told, alike = said[due]
    later = [text for done, (text, _) in said.items() if due < done <= due + PERIOD - EVERY and text]
    if alike and not told:
        campaign.counts["rounded away before the comparison"] += 1
        campaign.check(not later, case, f"bit {bit} of rank {rank} seemed gone, and then: {later}")
        return
    found = NAMED.search(told)
    if ranks == 2:
        good = told == "raised"
    else:
        good = bool(found) and (int(found[1]), int(found[2])) == (due, rank) and not told.startswith("NOT")  # type: ignore[index]
    campaign.check(good and not later, case, f"bit {bit} of rank {rank} at iteration {k}: said {told!r}, alike {alike}, later {later}")
    campaign.counts["found at the next comparison"] += good
    campaign.counts["rank named and healed"] += good and ranks > 2


def one_run(campaign: Campaign, first: int, count: int, comm: object, folder: Path) -> int:
    """A run with up to ``count`` flips; how many there were. Every rank calls."""
    from hurt import maker

    from apts_mpi import drift
    from apts_mpi.train import run_training

    watched = Watched(campaign, first, count, comm.rank, comm.size)  # type: ignore[attr-defined]
    watched.real = drift.check  # type: ignore[method-assign,assignment]
    config = settings(folder, KINDS[first // FLIPS % len(KINDS)], comm.size)  # type: ignore[attr-defined]
    ended = "without an end"
    try:
        with patch.object(drift, "check", watched.check):
            result = run_training(config, comm, maker(watched.before))  # type: ignore[arg-type]
        ended = result.status.value
        last = len(result.steps)
    except HandshakeError as error:
        campaign.check(comm.size == 2 and "theta differs" in str(error), first, f"ended by {error}")  # type: ignore[attr-defined]
        last = max(watched.said)
    if comm.rank == 0:  # type: ignore[attr-defined]
        for index, flip in enumerate(watched.flips[: watched.done]):
            judge(campaign, first + index, flip, watched.said, comm.size)  # type: ignore[attr-defined]
        campaign.counts[f"runs: {ended}" if comm.size > 2 else "runs"] += 1  # type: ignore[attr-defined]
        wanted = ended in (Status.ITERATIONS.value, "without an end") or last >= watched.flips[watched.done - 1][0]
        campaign.check(wanted, first, f"the run ended as {ended} after {last} iterations")
    return watched.done


def main() -> int:
    parser = arguments(__doc__, 100)
    parser.add_argument("--ranks", type=int, default=3)
    args = parser.parse_args()
    if not launch.launched(os.environ):
        return on_ranks(args.ranks, __file__, 60 + 3.0 * args.cases)
    comm, campaign = launch.start(), Campaign("flips", args)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(comm.share(name))
        if comm.rank == 0:
            make_data(folder)
        comm.barrier()
        case, last = args.first, args.first + args.cases
        while case < last:
            done = one_run(campaign, case, min(FLIPS, last - case), comm, folder)
            case += max(done, 1)
            if comm.rank == 0:
                campaign.progress(case - args.first, 1)
            if comm.share("x" if campaign.failures else ""):
                break
        comm.barrier()
    status = 0
    if comm.rank == 0:
        found, gone = campaign.counts["found at the next comparison"], campaign.counts["rounded away before the comparison"]
        words = f"{found} of {case - args.first - gone} bits that were still there found on {comm.size} ranks, {gone} rounded away"
        status = campaign.finish(words, good=found + gone == case - args.first)
    failed = bool(comm.share("failed" if status else ""))
    launch.finish(comm)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
