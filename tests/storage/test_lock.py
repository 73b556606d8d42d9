"""Two jobs in one folder: the second is refused, a holder that is certainly gone is replaced, and only by one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from apts_mpi import lock
from apts_mpi.lock import Holder, LockError, RunLock
from apts_mpi.regular import with_sum

pytestmark = pytest.mark.fault(56)
AGAIN = {"SLURM_JOB_ID": "12", "SLURM_RESTART_COUNT": "2"}
HOLD = "import sys; from apts_mpi.lock import RunLock; from pathlib import Path; RunLock.take(Path(sys.argv[1])); print('go', flush=True); "


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    return tmp_path / "lock"


def left_by(path: Path, seconds_ago: float = 10.0, **changes: Any) -> None:
    """A lock file of another process."""
    path.write_text(json.dumps(with_sum(asdict(replace(Holder.here(), **changes)))))
    os.utime(path, (path.stat().st_mtime - seconds_ago,) * 2)


def taken(path: Path) -> list[str]:
    """Take the lock, give it back, and tell what was said; the folder is left as clean as it was."""
    said: list[str] = []
    lock = RunLock.take(path, warn=said.append)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    lock.release()
    assert not path.exists()
    return said


def holding(path: Path, then: str) -> subprocess.Popen[str]:
    child = subprocess.Popen([sys.executable, "-c", HOLD + then, str(path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "go\n"
    return child


def test_the_second_is_refused_with_names_and_the_file_to_delete(path: Path) -> None:
    with holding(path, "import signal; signal.pause()") as child:
        with pytest.raises(LockError, match=rf"lock: is in use by process {child.pid} on .* delete .*lock$") as caught:
            RunLock.take(path)
        assert caught.value.filename == str(path) and os.uname().nodename in str(caught.value)
        before = path.read_bytes()
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert path.read_bytes() == before
    assert len(said := taken(path)) == 1 and f"taken over from process {child.pid}" in said[0] and "that process has ended" in said[0]


@pytest.mark.parametrize("end", ["pass", "sys.exit(3)", "raise OSError(1)"])
def test_the_end_of_the_process_gives_it_back(path: Path, end: str) -> None:
    with holding(path, end) as child:
        child.wait(10)
    assert not path.exists() and taken(path) == []


def test_a_zombie_is_gone_and_a_forked_child_gives_nothing_back(path: Path) -> None:
    ours = RunLock.take(path)
    if (child := os.fork()) == 0:
        ours.release()
        os._exit(0)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)  # dead, but still in the process table
    assert path.exists()
    left_by(path, pid=child, ticks=int(Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[19]))
    assert "has ended" in taken(path)[0]
    os.waitpid(child, 0)


@pytest.mark.parametrize(
    ("changes", "environ", "words"),
    [
        ({"ticks": 1}, {}, "that process has ended"),  # the number belongs to somebody else now
        ({"pid": 2**22 + 5}, {}, "that process has ended"),
        ({"boot": "an earlier one", "seconds_ago": 200.0}, {}, "the machine has started again"),
        ({"host": "node7", "job": "12@x", "restarts": 1}, AGAIN, "started again since (2 restarts)"),
        ({"host": "node7", "seconds_ago": 1860.0}, {}, "no sign of life for 31 min"),
        ({"space": "pid:[1]", "seconds_ago": 1860.0}, {}, "no sign of life"),
    ],
)
def test_a_holder_that_is_gone_is_replaced_in_words(
    path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], environ: dict[str, str], words: str
) -> None:
    for name, value in {"SLURM_CLUSTER_NAME": "x", **environ}.items():
        monkeypatch.setenv(name, value)
    left_by(path, **changes)
    assert len(said := taken(path)) == 1 and words in said[0]


@pytest.mark.parametrize(
    ("changes", "environ", "words"),
    [
        ({}, {}, "process"),
        ({"boot": "that of another machine of this name"}, {}, "process"),  # it gave a sign of life a moment ago
        ({"seconds_ago": 1e6}, {}, "process"),  # it is alive, however long it takes
        ({"host": "node7"}, {}, "process .* on node7; .*or wait 30 min"),
        ({"host": "node7", "seconds_ago": 600.0}, {}, "or wait 20 min"),
        ({"host": "node7", "job": "12@y"}, AGAIN, "of Slurm job 12;"),  # another cluster's
        ({"host": "node7", "job": "12@x", "restarts": 2}, AGAIN, "of Slurm job 12;"),
        ({"space": "pid:[1]", "pid": 2**22 + 5}, {}, "process"),  # in a container: its numbers say nothing here
    ],
)
def test_a_holder_that_may_be_alive_is_not_replaced(
    path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], environ: dict[str, str], words: str
) -> None:
    for name, value in {"SLURM_CLUSTER_NAME": "x", **environ}.items():
        monkeypatch.setenv(name, value)
    left_by(path, **changes)
    before = path.read_bytes()
    with pytest.raises(LockError, match=words):
        RunLock.take(path)
    assert path.read_bytes() == before and [entry.name for entry in path.parent.iterdir()] == ["lock"]


def damaged(raw: bytes) -> list[bytes]:
    numbers = [k for k in range(len(raw)) if raw[k : k + 1].isdigit()]
    return [raw[:k] + bytes([raw[k] ^ 1]) + raw[k + 1 :] for k in numbers] + [b"", raw[:-5], b"[" * 5000, bytes(1 << 17)]


def test_a_damaged_lock_is_in_use_until_nobody_has_touched_it_for_long(path: Path) -> None:
    left_by(path, ticks=1)
    for raw in damaged(path.read_bytes()):
        path.write_bytes(raw)
        with pytest.raises((LockError, ValueError), match="lock"):
            RunLock.take(path)
    path.write_bytes(b"")
    os.utime(path, (path.stat().st_mtime - 3600,) * 2)
    assert "an unknown holder" in taken(path)[0]


def test_touching_shows_life_and_finds_a_thief(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = RunLock.take(path)
    os.utime(path, (0, 0))
    ours.touch()
    assert path.stat().st_mtime == 0  # not yet due
    monkeypatch.setattr(lock, "TOUCH", 0.0)
    ours.touch()
    assert path.stat().st_mtime > 0
    for change in (path.unlink, lambda: path.write_bytes(b"damaged")):
        change()
        ours.touch()
        with pytest.raises(LockError):
            RunLock.take(path)
    left_by(path, host="node7", pid=5)
    with pytest.raises(LockError, match="process 5 on node7 has taken the lock from us"):
        ours.touch()
    ours.release()
    assert path.exists()  # it is another's now


def without_links(*args: object) -> None:
    raise OSError(1, "Operation not permitted")


@pytest.mark.parametrize("break_it", [lambda monkeypatch: None, lambda monkeypatch: monkeypatch.setattr(os, "link", without_links)])
def test_of_many_threads_one_gets_it(path: Path, monkeypatch: pytest.MonkeyPatch, break_it: Callable[[pytest.MonkeyPatch], None]) -> None:
    """Threads of one process: the same rules, and on file systems without hard links."""
    break_it(monkeypatch)
    start = threading.Barrier(8)

    def attempt(number: int) -> RunLock | None:
        start.wait()
        try:
            return RunLock.take(path, warn=lambda text: None)
        except LockError:
            return None

    with ThreadPoolExecutor(8) as pool:
        for _ in range(20):
            left_by(path, ticks=1)
            (winner,) = [lock for lock in pool.map(attempt, range(8)) if lock]
            assert sorted(entry.name for entry in path.parent.iterdir()) == ["lock"]
            winner.release()


RACE = """
import sys, os
from pathlib import Path
from apts_mpi.lock import LockError, RunLock
for line in sys.stdin:
    path = Path(line.strip())
    while not (path.parent / "go").exists(): pass
    try:
        lock = RunLock.take(path, warn=lambda text: None)
        print("won", flush=True)
    except LockError as error:
        print("lost", error, flush=True)
"""


@pytest.mark.parametrize("stale", [True, False], ids=["stale", "free"])
def test_of_eight_processes_one_gets_it(path: Path, stale: bool) -> None:
    children = [subprocess.Popen([sys.executable, "-c", RACE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(8)]
    for number in range(20):
        (here := path.parent / str(number)).mkdir()
        if stale:
            left_by(here / "lock", ticks=1)
            if number % 4 == 0:  # somebody died while taking it over
                left_by(lock._guard(here / "lock", (here / "lock").read_bytes()), ticks=1)
        for child in children:
            child.stdin.write(f"{here / 'lock'}\n")
            child.stdin.flush()
        (here / "go").touch()
        said = [child.stdout.readline() for child in children]
        assert sum(line == "won\n" for line in said) == 1, said
        assert sorted(entry.name for entry in here.iterdir()) == ["go", "lock"]
    for child in children:
        child.communicate(timeout=10)
        assert child.returncode == 0
