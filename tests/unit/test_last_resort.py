"""The one timer of faulthandler: a wish to end the process comes before one to show its stacks."""

from __future__ import annotations

import subprocess
import sys

import pytest

SHOWN = "most recent call first"  # how faulthandler's stacks begin


def run(*wishes: str) -> subprocess.CompletedProcess[str]:
    """A process that has these wishes, then sleeps for a second."""
    code = "\n".join(["import time", "from apts_mpi.parallel.last_resort import end_after, show_after, stay", *wishes, "time.sleep(1)"])
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("wishes", "code", "shown"),
    [
        (["end_after(0.1)"], 1, True),
        (["show_after(0.1)"], 0, True),
        (["end_after(0.1)", "stay()"], 0, False),
        (["show_after(0.1)", "show_after(0)"], 0, False),
        (["end_after(0.1)", "show_after(50)"], 1, True),
        (["end_after(0.1)", "show_after(50)", "show_after(0)"], 1, True),
        (["show_after(0.1)", "end_after(50)"], 0, False),
        (["show_after(0.1)", "end_after(50)", "stay()"], 0, True),
        (["end_after(50)", "show_after(0.1)", "stay()"], 0, True),
    ],
)
def test_the_stronger_wish_stays(wishes: list[str], code: int, shown: bool) -> None:
    done = run(*wishes)
    assert (done.returncode, SHOWN in done.stderr) == (code, shown), done.stderr
