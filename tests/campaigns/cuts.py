"""Kill the process that writes a checkpoint at random places of the writing: the one before it, or the new one, must load.

    python tests/campaigns/cuts.py [--cases 200] [--seed 0] [--out FILE]

A case is a forked process without torch and MPI that goes on with a folder of checkpoints and is killed by SIGKILL between two lines of
the package, at a random one of all that it passes, or after a random share of the bytes of a file. The next case goes on with what it left.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from common import Campaign, arguments

from apts_mpi.storage.checkpoint import FACTS, Checkpoint, newest, sequences, write

KEEP, PACKAGE = 2, os.sep + "apts_mpi" + os.sep


def made(sequence: int) -> Checkpoint:
    """Checkpoint ``sequence``, which nobody can take for another."""
    rng = np.random.default_rng(sequence)
    facts: dict[str, Any] = {name: kinds[0]() for name, kinds in FACTS.items()}
    facts |= {"iteration": 3 * sequence, "subdomains": 2, "settings": {"mark": sequence}}
    own = [{"radius": rng.random(1)}, {"radius": rng.random(1)}]
    return Checkpoint(sequence, facts, rng.random(3000).astype(np.float32), {"k": rng.random(())}, own, b"a,b\n" * sequence)


def same(found: Checkpoint, wanted: Checkpoint) -> bool:
    own = all(np.array_equal(a["radius"], b["radius"]) for a, b in zip(found.own, wanted.own, strict=True))
    return np.array_equal(found.theta, wanted.theta) and found.records == wanted.records and found.facts == wanted.facts and own


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Lines:
    """Counts the lines of the package that this process passes, and kills it at one of them."""

    def __init__(self, last: int) -> None:
        self.passed, self._last = 0, last

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Any:
        if PACKAGE not in frame.f_code.co_filename:
            return None
        self.passed += event == "line"
        if self.passed == self._last:
            die()
        return self


def cut_bytes(chance: random.Random) -> None:
    """From now on a file gets a part of its bytes, and the process dies; at the first or the second file."""
    real, left = Path.write_bytes, [chance.randrange(2)]

    def write_bytes(path: Path, data: bytes | memoryview) -> int:
        if left[0]:
            left[0] -= 1
            return real(path, data)
        real(path, memoryview(data)[: chance.randrange(len(data) + 1)])
        die()
        return 0

    Path.write_bytes = write_bytes  # type: ignore[assignment,method-assign]


def child(folder: Path, sequence: int, chance: random.Random, lines: int) -> int:
    """Write in a forked process, which is killed; the signal that ended it, 0 if it came to the end."""
    pid = os.fork()
    if pid == 0:
        if chance.random() < 0.3:
            cut_bytes(chance)
        else:
            sys.settrace(Lines(chance.randint(1, lines)))
        write(folder, made(sequence), KEEP)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def count(folder: Path) -> int:
    """Lines that a whole write passes, with old checkpoints to remove."""
    for sequence in range(1, KEEP + 1):
        write(folder, made(sequence), KEEP)
    lines = Lines(-1)
    sys.settrace(lines)
    write(folder, made(KEEP + 1), KEEP)
    sys.settrace(None)
    return lines.passed


def main() -> int:
    args = arguments(__doc__, 200).parse_args()
    campaign = Campaign("cuts", args)
    with tempfile.TemporaryDirectory() as name:
        (first := Path(name) / "counted").mkdir()
        (folder := Path(name) / "checkpoints").mkdir()
        lines, last = count(first), 1
        write(folder, made(last), KEEP)
        for case in range(args.first, args.first + args.cases):
            began = time.monotonic()
            code = child(folder, last + 1, campaign.chance(case), lines)
            campaign.check(code in (0, -signal.SIGKILL), case, f"ended with {code}")
            campaign.counts["came to the end" if code == 0 else "killed"] += 1
            found, problems = newest(folder)
            good = found is not None and not problems and found.sequence in (last, last + 1) and same(found, made(found.sequence))
            if not campaign.check(good, case, f"after {last}: newest {found.sequence if found else None}, {problems}"):
                break
            campaign.counts["new one found" if found.sequence > last else "one before found"] += 1  # type: ignore[union-attr]
            last = found.sequence  # type: ignore[union-attr]
            campaign.check(code != 0 or len(sequences(folder)) <= KEEP, case, f"{sequences(folder)} are left")
            campaign.took(time.monotonic() - began)
            campaign.progress(case - args.first + 1, 100)
        write(folder, made(last + 1), KEEP)
        files = sorted(entry.name for entry in folder.iterdir() if not entry.name.endswith(".tmp"))
        campaign.check(len(files) == 2 * KEEP, args.first + args.cases, f"a last, whole write leaves {files}")
        campaign.facts |= {"lines_of_a_write": lines, "left_over": sorted(entry.name for entry in folder.glob(".*.tmp"))}
    return campaign.finish(f"{campaign.counts['killed']} writes cut off, a whole checkpoint found after each")


if __name__ == "__main__":
    sys.exit(main())
