"""Whose run it is: of settings alone, or of a program that calls ``train()`` with a model and samples of its own; and how it goes on."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from apts_mpi.regular import inside, read_object

PROGRAM, SETTINGS = "program", "settings"
# What a program gives in its call; the settings of the same meaning are not read, but for the loss where it gives none.
GIVEN = ("data.path", "data.normalize", "data.limit", "model.name", "model.widths", "model.loss")


def of_program(model: str) -> dict[str, str]:
    """What the provenance of a program's run says; ``model``: the name of its class."""
    return {"origin": PROGRAM, "model": model, "samples": "tensors in memory"}


def by_program(provenance: Mapping[str, Any]) -> str:
    """The program's model and samples in words; empty for a run of settings, and for one of before this was written down."""
    if provenance.get("origin") != PROGRAM:
        return ""
    return f"a program that calls train(): model {provenance.get('model', '?')}, {provenance.get('samples', '?')}"


def go_on(folder: str | Path, ranks: int, program: bool = False) -> str:
    """The line to type, or what to do in the program, to go on with a run."""
    if program:
        launcher = f"under mpiexec -n {ranks} and " if ranks > 1 else ""
        place = json.dumps(str(folder), ensure_ascii=False)
        return f'the same program, {launcher}with run={{"dir": {place}, "resume": "auto"}} in its call of train()'
    start = f"OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']} " if os.environ.get("OMP_NUM_THREADS", "").isdigit() else ""
    launcher = f"mpiexec -n {ranks} " if ranks > 1 else ""
    return f"{start}{launcher}apts-mpi train --resume {shlex.quote(str(folder))}"


def refusal(folder: str) -> str:
    """Why ``train --resume`` cannot go on with the run in ``folder``; empty if it may."""
    from apts_mpi.rundir import PROVENANCE  # not before a run is looked at: it loads numpy

    try:
        facts = read_object(inside(Path(folder), PROVENANCE))
    except (OSError, ValueError):
        return ""
    ranks = facts.get("ranks")
    told = go_on(folder, ranks if isinstance(ranks, int) else 1, program=True)
    return f"{folder} is a run of {by_program(facts)}; go on with {told}" if by_program(facts) else ""
