"""A disk that is full, over its quota, read-only or broken while a run writes: what was saved stays, and is joined by more when it can be.

    python tests/campaigns/disk.py [--cases 100] [--seed 0] [--out FILE]

A case is one fault in the middle of a run in this process, which has a last good checkpoint by then, and is over some iterations later:
- ``full``: a small tmpfs without room (needs the right to mount); ``read-only``: the same, mounted again as read-only;
- ``quota``: RLIMIT_FSIZE, a real EFBIG from the kernel; ``EIO``, ``ENOSPC``, ``EDQUOT``: instead of any write, fsync, open or rename.
While it lasts the last good checkpoint must load with its bits, and the run must go on and warn at most once for checkpoints and once for
records. Afterwards a later checkpoint must be written, and the run must end with the bits of an untouched one, its records whole.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import errno
import io
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Campaign, arguments, make_data
from hurt import maker

from apts_mpi import rundir
from apts_mpi.config import Config
from apts_mpi.contracts import Status
from apts_mpi.parallel.serial import SerialCommunicator
from apts_mpi.presets import preset
from apts_mpi.storage import checkpoint
from apts_mpi.storage import lines as lines_module
from apts_mpi.train import run_training

ITERATIONS, BEGIN, LAST = 40, 12, 16  # of a run; when the fault may begin; how long it may last
MS_RDONLY, MS_REMOUNT, MNT_DETACH = 1, 32, 2
SIZE = 4 << 20  # bytes of the tmpfs
ERRORS = {"EIO": errno.EIO, "ENOSPC": errno.ENOSPC, "EDQUOT": errno.EDQUOT}
LIBC = ctypes.CDLL(None, use_errno=True)


def mount(folder: Path, flags: int = 0) -> bool:
    """Mount a small tmpfs on ``folder``, or mount it again; whether that is permitted."""
    return LIBC.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", ctypes.c_ulong(flags), f"size={SIZE}".encode()) == 0


def unmount(folder: Path) -> None:
    LIBC.umount2(os.fsencode(folder), MNT_DETACH)


def written() -> None:
    """Wait for the checkpoint that is being written, if there is one: on a slow disk it takes many iterations."""
    for thread in threading.enumerate():
        if thread.name == "checkpoint":
            thread.join()


@contextlib.contextmanager
def full(run: Path) -> Iterator[None]:
    """Fill the tmpfs to its last byte."""
    filler = run.parent / "filler"
    with open(filler, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 12))
    try:
        yield
    finally:
        filler.unlink()


@contextlib.contextmanager
def read_only(run: Path) -> Iterator[None]:
    """As the kernel does after an error; files that are open for writing must be closed for that, so the records are left out."""
    written()
    held = [int(name) for name in os.listdir("/proc/self/fd")]
    moved: dict[int, int] = {}
    for number in held:
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{number}").startswith(str(run.parent)):
                moved[number] = os.lseek(number, 0, os.SEEK_CUR)
    paths = {number: os.readlink(f"/proc/self/fd/{number}") for number in moved}
    for number, path in paths.items():  # the same file, read-only for as long as it lasts: a write is EBADF, an error like any other
        os.dup2(handle := os.open(path, os.O_RDONLY), number)
        os.close(handle)
    if not mount(run.parent, MS_REMOUNT | MS_RDONLY):
        raise OSError(ctypes.get_errno(), "cannot be mounted read-only", str(run.parent))
    try:
        yield
    finally:
        written()
        mount(run.parent, MS_REMOUNT)
        for number, path in paths.items():
            os.dup2(handle := os.open(path, os.O_RDWR), number)
            os.close(handle)
            os.lseek(number, moved[number], os.SEEK_SET)


@contextlib.contextmanager
def quota(run: Path) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextlib.contextmanager
def injected(number: int, chance: random.Random) -> Iterator[None]:
    """``number`` in place of some calls, or all of one kind, that write."""
    share = chance.choice([0.2, 0.5, 1.0])

    def failing(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **keys: Any) -> Any:
            if chance.random() < share:
                raise OSError(number, os.strerror(number))
            return real(*args, **keys)

        return call

    def broken(path: Path, data: bytes | memoryview) -> int:
        """Half of it, and then the error."""
        if chance.random() >= share:
            return write_bytes(path, data)
        write_bytes(path, memoryview(data)[: len(data) // 2])
        raise OSError(number, os.strerror(number))

    write_bytes = Path.write_bytes
    places: list[tuple[Any, str, Callable[..., Any]]] = [
        (os, "fsync", failing(os.fsync)), (Path, "replace", failing(Path.replace)), (Path, "write_bytes", broken),
        (lines_module.Lines, "_there", failing(lines_module.Lines._there)),
    ]  # fmt: skip
    kept = [(owner, name, getattr(owner, name)) for owner, name, _ in places]
    for owner, name, call in chance.sample(places, chance.randint(1, len(places))):
        setattr(owner, name, call)
    try:
        yield
    finally:
        for owner, name, real in kept:
            setattr(owner, name, real)


class Fault:
    """Begins and ends at iterations, and looks at the checkpoints meanwhile."""

    def __init__(self, campaign: Campaign, case: int, run: Path, kind: str, chance: random.Random) -> None:
        self._campaign, self._case, self._run = campaign, case, run
        self._kind, self._chance = kind, chance
        self._begin = chance.randint(6, BEGIN)
        self._end = self._begin + chance.randint(3, LAST)
        self._stack = contextlib.ExitStack()
        self._good: checkpoint.Checkpoint | None = None

    def before(self, k: int, theta: torch.Tensor) -> None:
        if k == self._begin:
            if not checkpoint.sequences(self._run / rundir.CHECKPOINTS):
                written()
            self._good = self._newest()
            context = {"full": full, "read-only": read_only, "quota": quota}.get(self._kind)
            self._stack.enter_context(context(self._run) if context else injected(ERRORS[self._kind], self._chance))
        if self._begin < k <= self._end:
            self._survives()
        if k == self._end:
            self._stack.close()

    def _newest(self) -> checkpoint.Checkpoint | None:
        found, problems = checkpoint.newest(self._run / rundir.CHECKPOINTS)
        self._campaign.check(not problems, self._case, f"{self._kind}: a committed checkpoint is not whole: {problems}")
        self._campaign.check(found is not None, self._case, f"{self._kind}: there is no checkpoint")
        return found

    def _survives(self) -> None:
        """The newest one is the last good one, with its bits, or a later one."""
        found, good = self._newest(), self._good
        if found and good:
            same = found.sequence > good.sequence or (np.array_equal(found.theta, good.theta) and found.records == good.records)
            self._campaign.check(found.sequence >= good.sequence and same, self._case, f"{self._kind}: the last good checkpoint is lost")

    def close(self) -> None:
        self._stack.close()


def settings(folder: Path, run: Path) -> Config:
    return preset(
        "lsr1", data={"path": str(folder / "set"), "batch": 96}, model={"widths": (9,)}, local={"iters": 2},
        stop={"epochs": 0, "iterations": ITERATIONS}, checkpoint={"every": "1"},
        run={"dir": str(run), "device": "cpu", "threads": 1, "monitor": "plain", "evaluate": 0},
    )  # fmt: skip


def one(campaign: Campaign, case: int, folder: Path, kind: str, theta: torch.Tensor) -> None:
    chance, place = campaign.chance(case), folder / f"disk-{case}"
    place.mkdir()
    mounted = kind in ("full", "read-only") and mount(place)
    run, began, text = place / "run", time.monotonic(), io.StringIO()
    fault = Fault(campaign, case, run, kind, chance)
    try:
        with contextlib.redirect_stdout(text):
            result = run_training(settings(folder, run), SerialCommunicator(), maker(fault.before))
        good = result.status is Status.ITERATIONS and torch.equal(result.theta, theta) and not result.unsaved
        campaign.check(good, case, f"{kind}: ended as {result.status.value}, unsaved: {result.unsaved!r}")
        last, problems = checkpoint.newest(run / rundir.CHECKPOINTS)
        ok = last is not None and not problems and last.facts["iteration"] == ITERATIONS and np.array_equal(last.theta, theta.numpy())
        campaign.check(ok, case, f"{kind}: the last checkpoint is of iteration {last.facts['iteration'] if last else None}, {problems}")
        known = rundir.read_run(run)
        whole = known.completion is not None and known.columns["iteration"].tolist() == list(range(ITERATIONS))
        campaign.check(whole, case, f"{kind}: records {known.columns['iteration'].tolist()}")
        warned = [line for line in text.getvalue().splitlines() if "note: " in line]
        most = 2 if kind in ("full", "read-only", "quota") else 2 * LAST  # a disk that fails now and then recovers in between
        campaign.check(len(warned) <= most, case, f"{kind}: {len(warned)} warnings: {warned}")
        campaign.counts[f"{kind} survived"] += good and ok and whole
        campaign.counts["warned"] += bool(warned)
    finally:
        fault.close()
        if mounted:
            unmount(place)
    campaign.took(time.monotonic() - began)


def kinds(campaign: Campaign, folder: Path, args: argparse.Namespace) -> list[str]:
    """Which faults can be had here."""
    (place := folder / "may").mkdir()
    if mount(place):
        unmount(place)
        return ["full", "read-only", "quota", *ERRORS]
    campaign.say(f"no tmpfs: mounting needs more rights ({os.strerror(ctypes.get_errno())}); full and read-only are left out")
    campaign.facts["left out"] = ["full", "read-only"]
    return ["quota", *ERRORS]


def main() -> int:
    args = arguments(__doc__, 100).parse_args()
    space = ["unshare", "-rm"]  # where a user may mount what nobody else sees
    if os.geteuid() and shutil.which("unshare") and subprocess.run([*space, "true"], capture_output=True).returncode == 0:
        os.execvp(space[0], [*space, sys.executable, *sys.argv])
    campaign = Campaign("disk", args)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_data(folder)
        with contextlib.redirect_stdout(io.StringIO()):
            theta = run_training(settings(folder, folder / "whole"), SerialCommunicator()).theta
        names = kinds(campaign, folder, args)
        for case in range(args.first, args.first + args.cases):
            one(campaign, case, folder, names[case % len(names)], theta)
            campaign.progress(case - args.first + 1, 20)
    survived = sum(count for name, count in campaign.counts.items() if name.endswith("survived"))
    return campaign.finish(f"{survived} of {args.cases} faults of the disk survived", good=survived == args.cases)


if __name__ == "__main__":
    sys.exit(main())
