"""The monitor's lines: columns, widths, the choice of view, and what stays on a terminal."""

from __future__ import annotations

import contextlib
import fcntl
import io
import math
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from apts_mpi.contracts import Status, StepInfo
from apts_mpi.monitor import Monitor, lines, views
from apts_mpi.monitor.lines import duration
from apts_mpi.monitor.terminal import LAUNCHED, find_screen
from apts_mpi.timing import Timers, table

INFO = StepInfo(
    k=7,
    epoch=3,
    loss=0.123456,
    grad_norm=1.5e-5,
    rho=0.875,
    accepted=True,
    radius=0.25,
    step_norm=0.2,
    global_rho=0.1,
    global_accepted=False,
    global_radius=0.5,
    local_iters=10,
    local_accepted=9,
    loss_new=0.12,
    gradient_samples=20_000,
    value_samples=0,
    reductions=3,
    status=Status.RUNNING,
)
EXTRA = {"epoch": 3.5, "time": 12.34, "eta": 3725.0, "passes": 24.5, "accuracy": 97.754}
HUGE = replace(INFO, k=99_999, loss=1.5e-30, grad_norm=2.5e-30, rho=-1e30, radius=1.25e-6, local_iters=99_999)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if no launcher had started the tests, and on a terminal with colours."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name in LAUNCHED:
        monkeypatch.delenv(name, raising=False)


def cells(text: str) -> dict[str, str]:
    """A line taken apart by the columns of the heading: every name ends where its column ends."""
    found, start = {}, 0
    for name in lines.heading().split():
        end = lines.heading().index(name, start) + len(name)
        found[name] = text[start:end].strip()
        start = end
    return found


def test_every_column_stands_under_its_name() -> None:
    found = cells(lines.line(INFO, {**EXTRA, "reductions_total": 24}))
    assert found == {
        "epoch": "3.5",
        "k": "7",
        "loss": "0.1235",
        "|g|": "1.50e-05",
        "rho": "0.88",
        "radius": "0.250",
        "acc": "y/n",
        "local": "10",
        "evals": "24.5",
        "reds": "24",
        "test%": "97.75",
        "time": "12.3s",
        "eta": "1h02m",
    }


def test_what_is_unknown_is_blank_or_a_dash_and_no_global_step_leaves_one_verdict() -> None:
    found = cells(lines.line(replace(INFO, global_rho=math.nan, accepted=False, rho=math.nan, radius=math.nan), {"accuracy": None}))
    assert [found[name] for name in ("acc", "rho", "radius", "test%", "eta", "epoch")] == ["n", "-", "-", "", "-", "3.0"]


@pytest.mark.parametrize("info", [INFO, HUGE, replace(INFO, loss=math.nan, grad_norm=math.inf, rho=math.inf)])
def test_a_line_is_as_wide_as_its_heading_and_at_most_a_hundred_with_the_clock(info: StepInfo) -> None:
    extra = {"epoch": 999.94, "time": 3.5e5, "eta": 9e6, "passes": 9999.94, "reductions_total": 99_999.0, "accuracy": 100.0}
    assert len(lines.line(info, extra)) == len(lines.heading())
    assert len("12:34:56 " + lines.heading()) <= 100
    assert len(lines.heading(lines.spare(79))) <= 79
    for without in ((), (lines.TEST,)):
        assert all(len(text) <= 100 for averaged in (True, False) for text in lines.legend(None, without, averaged))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0s"),
        (99.94, "99.9s"),
        (99.96, "1:40"),
        (3599.4, "59:59"),
        (3600, "1h00m"),
        (359_999, "99h59m"),
        (360_000, "4d04h"),
        (1e9, ">99d"),
    ]
    + [(None, "-"), (math.nan, "-"), (math.inf, "-"), (-1, "-")],
)
def test_durations_are_at_most_six_wide(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text
    assert len(text) <= 6


def test_plain_log_has_stamps_header_again_and_no_colour() -> None:
    out = io.StringIO()
    with Monitor("auto", 60, "title", out) as screen:  # a StringIO is no terminal, so auto is plain
        screen.start({"data": "digits", "subdomains": "N = 2"})
        for k in range(60):
            screen.step(replace(INFO, k=k), EXTRA)
        screen.note("the radius is small")
    text = out.getvalue()
    written = text.splitlines()
    assert "\x1b" not in text and text.isascii()
    assert written[0] == "title" and written[1] == "data        digits"
    assert sum(line.startswith("clock ") for line in written) == 3  # before 0, 25 and 50
    steps = [line for line in written if re.match(r"\d\d:\d\d:\d\d ", line)]
    assert len(steps) == 61  # and a note
    assert cells(steps[59][9:])["reds"] == "180"  # the monitor adds up what train does not
    assert written[-1][9:] == "note: the radius is small"


def plain(count: int, accuracy: Callable[[int], float | None], monkeypatch: pytest.MonkeyPatch) -> tuple[list[int], int]:
    """Which iterations a log shows when 300 pass in a second and an error ends them, and how often it says that some are left out."""
    now = [0.0]
    monkeypatch.setattr(views, "monotonic", lambda: now[0])
    out = io.StringIO()
    with pytest.raises(KeyboardInterrupt), Monitor("plain", count, "title", out) as screen:
        for k in range(count):
            screen.step(replace(INFO, k=k), {**EXTRA, "accuracy": accuracy(k)})
            now[0] += 1 / 300
        raise KeyboardInterrupt
    written = out.getvalue().splitlines()
    shown = [int(match[1]) for row in written if (match := re.match(r"\d\d:\d\d:\d\d +3\.5 +(\d+) ", row))]
    return shown, sum("at most one line in 1 s" in row for row in written)


@pytest.mark.parametrize("accuracy", [None, math.nan, 97.0], ids=["never tested", "no labels", "tested every time"])
def test_a_plain_log_of_very_many_iterations_has_one_line_a_second(accuracy: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    shown, told = plain(1400, lambda k: accuracy, monkeypatch)
    assert shown[: views.PLENTY] == list(range(views.PLENTY)) and shown[-1] == 1399 and told == 1
    later = [k for k in shown if views.PLENTY <= k < 1399]
    assert later == pytest.approx([499, 799, 1099], abs=2)


def test_a_rare_test_accuracy_is_never_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    shown, _ = plain(1000, lambda k: 97.0 if k % 100 == 50 else None, monkeypatch)
    assert set(range(50, 1000, 100)) <= set(shown)


def test_nothing_is_said_to_be_left_out_where_nothing_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert plain(views.PLENTY, lambda k: None, monkeypatch) == (list(range(views.PLENTY)), 0)


READER = """
import sys
from apts_mpi.monitor import Monitor
with Monitor("plain") as screen:
    for k in range(20_000):
        screen.say("a line that nobody reads")
sys.stderr.write("done")
"""


def test_a_reader_that_goes_away_ends_nothing() -> None:
    writer = subprocess.Popen([sys.executable, "-c", READER], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert writer.stdout is not None and writer.stderr is not None
    assert writer.stdout.readline() == "a line that nobody reads\n"
    writer.stdout.close()
    assert writer.stderr.read() == "done" and writer.wait(60) == 0
    writer.stderr.close()


def test_finish_prints_phases_and_result() -> None:
    out, timers = io.StringIO(), Timers()
    timers.phase("run")
    with timers("reduce"):
        pass
    Monitor("plain", stream=out).finish(table([timers.row()]), {"status": "epochs done", "accuracy": "97.8 %"})
    assert "reduce" in out.getvalue()
    assert out.getvalue().endswith("status    epochs done\naccuracy  97.8 %\n")


def test_none_is_silent() -> None:
    out = io.StringIO()
    screen = Monitor("none", 3, "title", out)
    screen.start({"data": "x"})
    screen.step(INFO, EXTRA)
    screen.note("x")
    screen.finish([], {"a": 1})
    assert out.getvalue() == ""


def test_live_shows_bar_and_last_lines_and_gives_the_cursor_back(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal(monkeypatch)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(views, "REDRAW", 0.0)
    out = Terminal()
    with pytest.raises(KeyboardInterrupt), Monitor("auto", 40, "title", out) as screen:
        screen.start({"data": "[red]digits[/red]"})  # brackets are text, not markup
        for k in range(30):
            screen.step(replace(INFO, k=k, accepted=k % 2 == 0), EXTRA)
        raise KeyboardInterrupt
    text = out.getvalue()
    assert "[red]digits" in text
    assert "30/40" in text and "1h02m left  test 97.75 %" in text
    assert "\x1b[32my/n" in text and "\x1b[2;31mn/n" in text
    assert text.count("\x1b[?25h") == 1  # cursor shown again
    last = text[text.rindex("epoch") :]
    assert [int(found) for found in re.findall(r" 3\.5 +(\d+) ", last)] == list(range(18, 30))


def left_on_screen(text: str) -> list[str]:
    """What stands on a terminal, and above it, in the end: cursor up and erased lines are all that the live view uses."""
    rows, at = [""], 0
    for part in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", text):
        if part == "\n":
            at += 1
            rows += [""] * (at + 1 - len(rows))
        elif part.startswith("\x1b["):
            at -= int(part[2:-1] or 1) if part.endswith("A") else 0
            rows[at] = "" if part.endswith("K") else rows[at]
        elif part != "\r":
            rows[at] += part
    return rows


def test_lines_of_round_numbers_stay_above_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal(monkeypatch)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(views, "REDRAW", 0.0)
    out = Terminal()
    with Monitor("live", 345, "title", out) as screen:
        for k in range(345):
            screen.step(replace(INFO, k=k), EXTRA)
    rows = left_on_screen(out.getvalue())
    found = [int(match[1]) for row in rows if (match := re.match(r" +3\.5 +(\d+) ", row))]
    assert found == [*range(10), *range(10, 100, 10), 100, 200, 300, *range(333, 345)]
    assert [row.split()[:2] for row in rows].count(["epoch", "k"]) == 2


@pytest.mark.parametrize("kind", ["plain", "live"])
def test_without_an_accuracy_there_is_no_column_for_it(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal(monkeypatch)
    out = Terminal()
    with Monitor(kind, 40, "title", out, without=(lines.TEST,)) as screen:
        screen.start({})
        screen.step(INFO, {**EXTRA, "accuracy": math.nan})
    assert "test" not in out.getvalue() and "nan" not in out.getvalue() and "evals" in out.getvalue()


def test_the_legend_says_whose_accuracy_it_is() -> None:
    out = io.StringIO()
    Monitor("plain", stream=out).start({}, averaged=True)
    Monitor("plain", stream=out).start({})
    assert out.getvalue().count("test%  test accuracy, mean of the iterates\n") == 1 and out.getvalue().count("test%  test accuracy\n") == 1


def test_a_narrow_terminal_drops_columns_instead_of_wrapping(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal(monkeypatch)
    monkeypatch.setenv("COLUMNS", "80")
    out = Terminal()
    with Monitor("live", 40, "title", out) as screen:
        screen.step(INFO, EXTRA)
        screen.note("[b]brackets[/b]")
    assert "[b]brackets[/b]" in out.getvalue()
    heading = out.getvalue()[out.getvalue().rindex("epoch") :].splitlines()[0]
    assert "evals" in heading and "local" not in heading


@pytest.mark.parametrize("width", [34, 45, 60, 72, 80, 85, 91, 120])
def test_a_line_fits_the_terminal_with_as_many_columns_as_there_is_room_for(width: int) -> None:
    dropped = lines.spare(width)
    assert len(lines.heading(dropped)) <= width and {"k", "loss", "acc", "test%"} <= set(lines.heading(dropped).split())
    assert not dropped or len(lines.heading(dropped[:-1])) > width


@pytest.mark.parametrize("width", [30, 60])
def test_the_verdict_is_coloured_wherever_it_stands(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal(monkeypatch)
    monkeypatch.setenv("COLUMNS", str(width))
    out = Terminal()
    with Monitor("live", 40, "title", out) as screen:
        screen.step(INFO, EXTRA)
    assert "\x1b[32my/n" in out.getvalue()


@pytest.mark.parametrize("width", [20, 40, 60, 80, 91, 100, 120])
def test_the_legend_fits_and_explains_what_is_shown(width: int) -> None:
    text, shown = lines.legend(width), lines.heading(lines.spare(width)).split()
    assert all(len(line) <= max(width, 27) for line in text)
    whole = " ".join(" ".join(line.split()) for line in text)
    for name, words in lines.LEGEND.items():
        assert (f"{name} {words}" in whole) == (name in shown), name
    assert set(shown) <= set(lines.LEGEND)
    assert len(text) == {80: 7, 100: 7, 120: 7}.get(width, len(text))


TRAIN = """
from apts_mpi.contracts import Status, StepInfo
from apts_mpi.monitor import Monitor
from apts_mpi.timing import RegionTime
from math import nan
with Monitor("auto", 1, "title") as screen:
    screen.start({"data": "digits"})
    screen.step(StepInfo(0, 0, 2.3, 0.3, 1.0, True, 2.0, 1.8, nan, False, nan, 84, 84, 1.4, 6230, 6000, 3, Status.RUNNING), {})
    screen.finish([RegionTime("run", "reduce", 45, 0.492, 0.553, 0.614, 1.11, 14.0, 45, 1_120_000)], {"checkpoints": "words " * 20})
"""


@pytest.mark.parametrize("columns", [80, 120])
def test_nothing_is_wrapped_by_the_terminal(columns: int) -> None:
    front, back = pty.openpty()
    fcntl.ioctl(back, termios.TIOCSWINSZ, struct.pack("HHHH", 60, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in (*LAUNCHED, "COLUMNS", "LINES", "NO_COLOR")}
    command = [sys.executable, "-c", TRAIN]
    subprocess.run(command, stdout=back, stderr=back, stdin=back, env={**environment, "TERM": "xterm"}, check=True, timeout=60)
    os.close(back)
    said = b""
    with contextlib.suppress(OSError):  # the other side is closed
        while more := os.read(front, 10_000):
            said += more
    os.close(front)
    uncoloured = re.sub(r"\x1b\[[0-9;]*m", "", said.decode())
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "\n", uncoloured).splitlines()  # where the cursor goes elsewhere
    assert all(len(line) <= columns for line in text), max(text, key=len)
    for word in ("local", "reds", "min s", "max s"):
        assert any(word in line for line in text) == (columns == 120), word
    row = next(line for line in text if line.startswith("run      reduce"))
    assert row.endswith("14.0 %        45   1.12 MB") and any(line.startswith("             words words") for line in text)


LAUNCHER = """#!/bin/sh
# As mpiexec: the program runs below it and its output is forwarded.
export PMI_RANK=0
"$@" | cat
"""
RANK = """
import os, pty, sys
from apts_mpi.monitor.terminal import find_screen
stream = os.fdopen(pty.openpty()[1], "w") if sys.argv[1] == "terminal" else sys.stdout
print(stream.isatty(), find_screen(stream))
"""


@pytest.mark.parametrize("through", ["pipe", "terminal"])  # what MPICH and Open MPI give to a rank
@pytest.mark.parametrize("watched", [True, False])
def test_the_launchers_output_decides(tmp_path: Path, through: str, watched: bool) -> None:
    """A rank's own output tells the opposite of the truth in two of the four cases."""
    launcher = tmp_path / "mpiexec"
    launcher.write_text(LAUNCHER)
    launcher.chmod(0o755)
    front, back = pty.openpty()
    fcntl.ioctl(back, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 133, 0, 0))
    out = tmp_path / "out"
    with out.open("w") as log:
        command = [str(launcher), sys.executable, "-c", RANK, through]
        environment = {**os.environ, "TERM": "xterm"}
        subprocess.run(command, stdout=back if watched else log, env=environment, check=True, timeout=30)
    said = os.read(front, 1000).decode().strip() if watched else out.read_text().strip()
    os.close(front)
    os.close(back)
    assert said == f"{through == 'terminal'} {'Screen(columns=133)' if watched else 'None'}"


def test_without_a_launcher_the_stream_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal(monkeypatch)
    assert find_screen(Terminal()) is not None and find_screen(io.StringIO()) is None
    monkeypatch.setenv("TERM", "dumb")
    assert find_screen(Terminal()) is None


def test_a_launcher_that_cannot_be_found_means_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("apts_mpi.monitor.terminal.LAUNCHERS", ("no such launcher",))
    assert find_screen(Terminal(), {"TERM": "xterm", "SLURM_STEP_ID": "0"}) is None
