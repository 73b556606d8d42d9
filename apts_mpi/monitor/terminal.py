"""Is a person watching? Under a launcher a rank's own standard output cannot tell.

MPICH gives every rank a pipe, even on a terminal; Open MPI gives every rank a pseudo-terminal,
even into a log file. So under a launcher the launcher's own standard output decides.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

LAUNCHERS = ("mpiexec", "mpirun", "prterun", "orterun", "srun")  # beginnings of process names
LAUNCHED = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK", "SLURM_STEP_ID")  # variables that a launcher sets


@dataclass(frozen=True)
class Screen:
    """A terminal that a person sees; ``columns`` None if unknown."""

    columns: int | None


def find_screen(stream: IO[str], environment: Mapping[str, str] = os.environ) -> Screen | None:
    """The terminal on which ``stream`` ends; None if it ends in a file or a pipe, on a dumb terminal, or that cannot be told."""
    if environment.get("TERM") == "dumb":
        return None
    if not any(name in environment for name in LAUNCHED):
        return Screen(None) if stream.isatty() else None
    launcher = next((pid for pid, name in _ancestors() if name.startswith(LAUNCHERS)), None)
    return None if launcher is None else _screen_of(Path(f"/proc/{launcher}/fd/1"))


def _ancestors() -> Iterator[tuple[int, str]]:
    """(process id, name) of the parent, its parent and so on; empty where there is no /proc."""
    pid = os.getppid()
    while pid > 1:
        try:
            name, _, rest = Path(f"/proc/{pid}/stat").read_text(errors="replace").partition("(")[2].rpartition(")")
        except OSError:
            return
        yield pid, name
        pid = int(rest.split()[1])


def _screen_of(path: Path) -> Screen | None:
    """The terminal behind an open file of another process; None if it is none, or not ours to look at."""
    try:
        if not stat.S_ISCHR(path.stat().st_mode):
            return None
        handle = os.open(path, os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        return Screen(os.get_terminal_size(handle).columns or None) if os.isatty(handle) else None
    finally:
        os.close(handle)
