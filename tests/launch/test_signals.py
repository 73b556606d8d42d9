"""Signals to a training under mpiexec: the ranks stop together within an iteration, save, say 75, and can go on to the last bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from launch_cases import LIMIT, MPIEXEC, needs_mpiexec
from same_bits import ENVIRONMENT, ROOT, make_data, train

pytestmark = [needs_mpiexec, pytest.mark.fault(45)]
ITERATIONS = 30
COMMON = f"--data.path set --data.batch 80 --model.widths 5 --stop.epochs 0 --stop.iterations {ITERATIONS} --run.evaluate 0"
COMMON += " --run.device cpu --run.threads 1"
SLOWLY = "--checkpoint.every 1 --comm.emulate_latency 0.08"  # an iteration takes about 0.3 s, more than all of them without the wait

# A disk that takes its time: rank 0 says when a write is under way. Then the command line of the package, unchanged.
PROGRAM = """
import os, runpy, sys, threading, time
fsync = os.fsync
def slow(handle):
    if threading.current_thread() is not threading.main_thread():
        with open("writing", "a") as mark:
            mark.write("x")
        time.sleep(0.1)
    fsync(handle)
os.fsync = slow
open(f"{os.environ.get('PMI_RANK', os.environ.get('OMPI_COMM_WORLD_RANK'))}.pid", "w").write(str(os.getpid()))
sys.argv[0] = "apts-mpi"
runpy.run_module("apts_mpi", run_name="__main__", alter_sys=True)
"""


def is_openmpi() -> bool:
    told = subprocess.run([str(MPIEXEC), "--version"], capture_output=True, text=True, timeout=20).stdout
    return "HYDRA" not in told


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set, a program, and a run that nobody disturbs."""
    folder = tmp_path_factory.mktemp("signals")
    make_data(folder)
    (folder / "program.py").write_text(PROGRAM)
    whole = train(folder, 0, f"{COMMON} --solver.subdomains 2 --run.dir whole")
    assert whole.status == 0, whole.text
    return folder


@contextmanager
def begun(place: Path, run: str) -> Iterator[subprocess.Popen[str]]:
    """A training on two ranks that has kept a checkpoint and writes the next one; whatever is left of it is ended."""
    for path in [place / "writing", *place.glob("*.pid")]:
        path.unlink(missing_ok=True)
    command = [str(MPIEXEC), "-n", "2", sys.executable, "program.py", "train", *COMMON.split(), *SLOWLY.split(), "--run.dir", run]
    environ = {**os.environ, **ENVIRONMENT, "PYTHONPATH": str(ROOT)}
    with open(place / f"{run}.log", "w") as log:
        process = subprocess.Popen(
            command, cwd=place, env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            text=True,
        )  # fmt: skip
    try:
        waited = time.monotonic()
        while not list(place.glob(f"{run}/checkpoints/*.json")):
            assert process.poll() is None and time.monotonic() - waited < 60, (place / f"{run}.log").read_text()
            time.sleep(0.01)
        before = size(place / "writing")
        while size(place / "writing") == before:
            time.sleep(0.005)
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def iterations(run: Path) -> int:
    return max(0, len((run / "records.csv").read_text().splitlines()) - 1)


def goes_on(place: Path, run: str) -> None:
    """From where it was left, on one rank and without a launcher, to the parameters of the undisturbed run."""
    again = train(place, 0, f"--resume {run} --comm.emulate_latency 0 --checkpoint.every off")
    assert again.status == 0, again.text
    records = [json.loads((place / name / "completion.json").read_text()) for name in ("whole", run)]
    assert [record["iterations"] for record in records] == [ITERATIONS] * 2
    assert records[0]["theta_sha256"] == records[1]["theta_sha256"], again.text


def saved(run: Path) -> int:
    """Iterations that the newest checkpoint has."""
    return max(int(json.loads(path.read_text())["iteration"]) for path in (run / "checkpoints").glob("*.json"))


@pytest.mark.parametrize(
    ("target", "name", "times", "resumed"),
    [
        ("launcher", "SIGTERM", 2, True),
        ("launcher", "SIGUSR1", 1, False),
        ("launcher", "SIGINT", 1, False),
        ("rank", "SIGTERM", 1, False),
        ("rank", "SIGUSR1", 2, True),
    ],
)
def test_one_agreed_stop_while_a_checkpoint_is_written(place: Path, target: str, name: str, times: int, resumed: bool) -> None:
    run = f"{target}-{name}"
    with begun(place, run) as process:
        pid = process.pid if target == "launcher" else int((place / "1.pid").read_text())
        done = iterations(place / run)
        for _ in range(times):
            os.kill(pid, getattr(signal, name))
            time.sleep(0.02)  # else the second may be taken for the first
        status = process.wait(timeout=LIMIT)
    text = (place / f"{run}.log").read_text()
    # Open MPI's launcher ends its ranks half a second after SIGTERM or SIGINT, whatever they do: only what was saved before is sure.
    if not (is_openmpi() and target == "launcher" and name != "SIGUSR1"):
        assert status == 75, text
        assert text.count("stopped by") == 1 and name in text.partition("stopped by")[2], text
        assert saved(place / run) == iterations(place / run) <= done + 2, "one under way, one begun before all heard"
    assert status != 0 and not (place / run / "completion.json").exists(), text
    assert "Traceback" not in text
    if resumed:
        goes_on(place, run)


def test_a_second_ctrl_c_ends_at_once(place: Path) -> None:
    """What is still under way is given up; the checkpoint before it is not."""
    with begun(place, "now") as process:
        ranks = [int((place / f"{rank}.pid").read_text()) for rank in range(2)]
        for _ in range(2):
            os.kill(ranks[0], signal.SIGINT)
            time.sleep(0.02)
        status = process.wait(timeout=LIMIT)
    assert status not in (0, 75), (place / "now.log").read_text()
    goes_on(place, "now")
