"""Look at runs: print one, draw several."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from apts_mpi.rundir import read_run
from apts_mpi.study.plots import draw
from apts_mpi.study.tables import sections

PICTURE = "plot.png"  # in the first run's directory, unless told


def show_run(path: str | Path, stream: IO[str] | None = None) -> None:
    """Print a run directory on ``stream`` (default: standard output), in colour on a terminal.

    FileNotFoundError or ValueError name the file.
    """
    out = sys.stdout if stream is None else stream
    run = read_run(path)
    parts = [(f"Run {run.path}", []), *sections(run)]
    if out.isatty():
        _show_coloured(parts, out, finished=run.completion is not None)
    else:
        for heading, lines in parts:
            out.write("\n".join([heading, *(f"  {line}" for line in lines), "", ""]))


def _show_coloured(parts: Sequence[tuple[str, Sequence[str]]], out: IO[str], finished: bool) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(file=out, highlight=False)
    for heading, lines in parts:
        console.print(Text(heading, style="bold cyan"))
        for line in lines:
            style = "" if finished or "did not finish" not in line else "bold red"
            console.print(Text(f"  {line}", style=style), soft_wrap=True)
        console.print()


def plot_runs(paths: Sequence[str | Path], out: str | Path | None = None) -> Path:
    """Draw runs into ``out`` (PNG, PDF or SVG by its ending; default: plot.png in the first run's directory); returns its path."""
    runs = [read_run(path) for path in paths]
    if not runs:
        raise ValueError("name at least one run directory to draw")
    target = runs[0].path / PICTURE if out is None else Path(out)
    draw(runs, target)
    return target
