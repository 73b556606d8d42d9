"""Ranks that are stuck, stopped, vanished or gone: the watchdog names them, shows every stack and ends the run."""

from __future__ import annotations

import io
import re
import time
from pathlib import Path

import pytest
from launch_cases import LIMIT, Outcome, ends_all_at_once, failed, needs_mpiexec, run
from same_bits import make_data, train

from apts_mpi.study.show import show_run

pytestmark = needs_mpiexec

PROGRAM = """
import re, signal
from apts_mpi.parallel.watchdog import watching
from apts_mpi.safety import SafetyConfig
comm = start()
print(f"[{comm.rank} is {os.getpid()}]", flush=True)
def others_wait():
    comm.barrier()
with watching(comm, SafetyConfig(deadline=DEADLINE, deadline_setup=DEADLINE)) as watchdog:
    watchdog.phase("run")
    if comm.rank == WHO:
        FAULT
    others_wait()
finish(comm)
sys.stdout.write("all is well\\n")
"""


def watched(tmp_path: Path, fault: str, who: int = 2, deadline: float = 1.5) -> Outcome:
    """Three ranks, one of which does ``fault`` while the others wait."""
    body = PROGRAM
    for name, text in {"DEADLINE": str(deadline), "WHO": str(who), "FAULT": fault}.items():
        body = body.replace(name, text)
    return run(tmp_path, body)


def pid(outcome: Outcome, rank: int) -> str:
    """The process of a rank, as it said itself."""
    found = re.search(rf"\[{rank} is (\d+)\]", outcome.text)
    assert found, outcome.text
    return found[1]


@pytest.mark.fault(43)
@pytest.mark.parametrize("who", [0, 2])
def test_a_stuck_rank(tmp_path: Path, who: int) -> None:
    outcome = watched(tmp_path, "time.sleep(60)", who)
    others = [rank for rank in range(3) if rank != who]
    failed(outcome, f"rank {who} on ", f"(pid {pid(outcome, who)}", "made no progress for ", "safety.deadline = 1.5 s")
    assert outcome.status == 4, outcome.text
    both = f"ranks {others[0]}, {others[1]}"
    for words in (f"{both} in barrier", f"{both}:\n", " in others_wait\n", f"rank {who}:\n"):
        assert words in outcome.text, f"{words!r} is not in\n{outcome.text}"
    assert outcome.text.index("made no progress") < outcome.text.index("others_wait")  # the words first


@pytest.mark.fault(43)
@pytest.mark.parametrize("who", [0, 2])
def test_a_stopped_rank(tmp_path: Path, who: int) -> None:
    outcome = watched(tmp_path, "os.kill(os.getpid(), signal.SIGSTOP)", who)
    named = f"rank {who} on "
    failed(outcome, named, f"(pid {pid(outcome, who)}, state T: stopped by a signal)", "was not heard of for", " in others_wait\n")
    assert outcome.status == 4, outcome.text


@pytest.mark.fault(43)
def test_a_rank_that_holds_the_interpreter_lock(tmp_path: Path) -> None:
    """Its watchdog cannot run, but a C thread shows where it is."""
    outcome = watched(tmp_path, "re.match('(a+)+$', 'a' * 60 + 'b')")
    failed(outcome, "rank 2 on ", "was not heard of for", "rank 2: no answer", "Timeout (0:00:01", "re/__init__.py")
    assert outcome.status == 4, outcome.text


@pytest.mark.fault(44)
@pytest.mark.parametrize("who", [0, 2])
def test_a_pause_below_the_deadline_is_no_alarm(tmp_path: Path, who: int) -> None:
    pause = "import subprocess; subprocess.Popen(['sh', '-c', f'sleep 3; kill -CONT {os.getpid()}']); os.kill(os.getpid(), signal.SIGSTOP)"
    outcome = watched(tmp_path, pause, who, deadline=4.5)
    assert outcome.status == 0 and outcome.text.count("all is well") == 3, outcome.text
    assert "watchdog" not in outcome.text and outcome.seconds > 3, outcome.text


@pytest.mark.fault(44)
def test_progress_outside_of_calls_is_progress(tmp_path: Path) -> None:
    fault = "watchdog.progress = lambda: int(time.monotonic()); time.sleep(3)"
    outcome = watched(tmp_path, fault)
    assert outcome.status == 0 and "watchdog" not in outcome.text, outcome.text


@pytest.mark.fault(44)
def test_a_sweep_longer_than_the_deadline_is_progress(tmp_path: Path) -> None:
    """It enters no region for two passes over its subdomain; the network that it evaluates tells that it gets on."""
    body = """
    import torch
    from apts_mpi.train import train
    class Slow(torch.nn.Linear):
        def forward(self, inputs):
            time.sleep(0.06)
            return super().forward(inputs)
    inputs = torch.randn(80, 3, generator=torch.Generator().manual_seed(0))
    train(Slow(3, 2), inputs, inputs[:, 0].gt(0).long(), stop={"iterations": 1}, run={"device": "cpu"}, safety={"deadline": 1.5})
    sys.stdout.write("all is well\\n")
    """
    outcome = run(tmp_path, body, ranks=2, limit=60)
    assert outcome.status == 0 and outcome.text.count("all is well") == 2 and "watchdog" not in outcome.text, outcome.text


@pytest.mark.fault(38)
@pytest.mark.parametrize("who", [0, 2])
def test_a_killed_rank(tmp_path: Path, who: int) -> None:
    outcome = watched(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)", who, deadline=60)
    failed(outcome, *([] if ends_all_at_once() else [f"rank {who} on ", f"(pid {pid(outcome, who)}) has vanished without a goodbye"]))


@pytest.mark.fault(38)
def test_a_rank_killed_in_a_sum(tmp_path: Path) -> None:
    body = """
    import signal, torch
    from apts_mpi.parallel.watchdog import watching
    from apts_mpi.safety import SafetyConfig
    comm = start()
    with watching(comm, SafetyConfig()):
        comm.configure("mpi", 2**30)
        message = comm.plan(500_000, torch.float32, torch.device("cpu"), [])
        comm.barrier()
        if comm.rank == 1:
            print(f"[killed at {time.time() + 0.3}]", flush=True)
            threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGKILL)).start()
        while True:
            comm.sum_(message)
    """
    outcome = run(tmp_path, body, limit=30)  # most of it for the import of torch
    failed(outcome)  # MPICH's mpiexec ends the others at once, and may let no word through
    killed = re.search(r"killed at ([0-9.]+)", outcome.text)
    assert killed and time.time() - float(killed[1]) < LIMIT, outcome.text


@pytest.mark.fault(42)
def test_a_vanished_rank_is_no_success(tmp_path: Path) -> None:
    """os._exit(0) in the middle of a run: MPICH's mpiexec may end the others at once and report 0; no record says success."""
    make_data(tmp_path)
    (tmp_path / "leaving.py").write_text(
        "import os, torch\n"
        "rank, seen = int(os.environ.get('PMI_RANK', os.environ.get('OMPI_COMM_WORLD_RANK', '0'))), []\n"
        "def loss(outputs, targets):\n"
        "    seen.append(1)\n"
        "    if rank == 1 and len(seen) > 20:\n"
        "        os._exit(0)\n"
        "    return torch.nn.functional.cross_entropy(outputs, targets, reduction='none')\n"
    )
    options = "--data.path set --run.dir run --run.device cpu --run.threads 1 --model.loss leaving:loss --stop.epochs 500"
    outcome = train(tmp_path, 3, options)
    assert outcome.status != 75, outcome.text
    assert (tmp_path / "run" / "provenance.json").exists() and not (tmp_path / "run" / "completion.json").exists()
    shown = io.StringIO()
    show_run(tmp_path / "run", shown)
    assert "did not finish" in shown.getvalue()


@pytest.mark.fault(41)
@pytest.mark.parametrize("who", [0, 1])
def test_a_rank_that_goes_straight_to_the_end(tmp_path: Path, who: int) -> None:
    outcome = watched(tmp_path, "watchdog.close(); finish(comm)", who, deadline=60)
    failed(outcome, f"rank {who} on ", "has left the run after ", " in barrier, collective call")
    assert outcome.status == 4 and outcome.seconds < 9, outcome.text


@pytest.mark.fault(53)
def test_a_forked_child_has_no_watchdog(tmp_path: Path) -> None:
    """It outlives its parent: only an end of the connections that is the parent's own tells the others at once."""
    body = """
    import signal, warnings
    warnings.simplefilter("ignore")
    from apts_mpi.parallel.watchdog import watching
    from apts_mpi.safety import SafetyConfig
    comm = start()
    with watching(comm, SafetyConfig()) as watchdog:
        if comm.rank == 1:
            if os.fork() == 0:
                os.close(1), os.close(2)
                watchdog.close()
                assert threading.active_count() == 1
                time.sleep(4)
                os._exit(0)
            time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGKILL)
        comm.barrier()
    """
    failed(run(tmp_path, body, ranks=2), *([] if ends_all_at_once() else ["rank 1 on ", "has vanished without a goodbye"]))


def test_a_bug_is_told_by_its_rank_alone(tmp_path: Path) -> None:
    """The watchdog keeps silent where the reason was told."""
    outcome = watched(tmp_path, "raise KeyError('odd')")
    failed(outcome, "rank 2 on ", "KeyError: 'odd'")
    assert outcome.status == 1 and "watchdog:" not in outcome.text and outcome.text.count("Traceback") == 1, outcome.text
