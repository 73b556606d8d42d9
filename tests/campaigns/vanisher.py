"""The command line of apts_mpi on one rank, which leaves by os._exit(0) at a moment told by the environment; started by vanish.py.

VANISH = "RANK MOMENT NUMBER MARK": the rank, the moment, how often it comes before, and a file to make just before. Moments: ``time``
(NUMBER ms after the start), or the name of a function below.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from typing import Any

RANK = int(os.environ.get("PMI_RANK") or os.environ.get("OMPI_COMM_WORLD_RANK") or 0)
WHO, MOMENT, NUMBER, MARK = os.environ["VANISH"].split()


def leave() -> None:
    """Without a word to anybody but the campaign."""
    os.close(os.open(MARK, os.O_CREAT | os.O_WRONLY))
    os._exit(0)


def leaving(real: Callable[..., Any], after: int) -> Callable[..., Any]:
    """``real``, until it is called for the time ``after``."""
    calls = [0]

    def call(*args: Any, **keys: Any) -> Any:
        calls[0] += 1
        if calls[0] > after:
            leave()
        return real(*args, **keys)

    return call


def prepare() -> None:
    """Arrange for the end."""
    if MOMENT == "time":
        timer = threading.Timer(int(NUMBER) / 1000, leave)
        timer.daemon = True
        timer.start()
        return
    from apts_mpi import closing, loop
    from apts_mpi.checkpoints import Checkpoints
    from apts_mpi.parallel.comm import MpiCommunicator
    from apts_mpi.storage import checkpoint

    places: dict[str, tuple[Any, str]] = {
        "agree": (MpiCommunicator, "agree"), "gather": (MpiCommunicator, "gather_text"), "share": (MpiCommunicator, "share"),
        "sum": (MpiCommunicator, "sum_"), "iterate": (loop.Loop, "_iterate"), "save": (Checkpoints, "save"),
        "own": (Checkpoints, "_gather_own"), "seal": (checkpoint, "write_sealed"), "commit": (checkpoint, "write_atomic"),
        "finish": (loop.Loop, "_finish"), "laps": (closing, "laps_of_all"), "store": (closing, "store"),
    }  # fmt: skip
    owner, name = places[MOMENT]
    setattr(owner, name, leaving(getattr(owner, name), int(NUMBER)))


if __name__ == "__main__":
    if int(WHO) == RANK:
        prepare()
    from apts_mpi.__main__ import main

    sys.exit(main())
