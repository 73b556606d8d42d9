"""Small programs under mpiexec that go wrong: each must end soon, with a status, naming the rank; none may hang."""

from __future__ import annotations

import os
from pathlib import Path

import launch_cases
import pytest
from launch_cases import LIMIT, failed, needs_mpiexec, run

pytestmark = needs_mpiexec


def test_a_good_run_ends_well(tmp_path: Path) -> None:
    outcome = run(tmp_path, "comm = start(); sys.stdout.write(f'sum {comm.gather([comm.rank])} {comm.size}\\n'); finish(comm)")
    assert outcome.status == 0, outcome.text
    assert outcome.text.count("sum [[0.0], [1.0], [2.0]] 3") == 3


def test_collective_exit_code_after_finish(tmp_path: Path) -> None:
    outcome = run(tmp_path, "comm = start(); finish(comm); sys.exit(75)", ranks=2)
    assert outcome.status == 75 and "left before" not in outcome.text, outcome.text


@pytest.mark.fault(40)
@pytest.mark.parametrize("others", ["comm.barrier()", "comm.gather([1.0])", "time.sleep(60)"])
def test_exception_on_one_rank(tmp_path: Path, others: str) -> None:
    body = f"""
    comm = start()
    if comm.rank == 1:
        raise ValueError("eta1 is odd")
    {others}
    finish(comm)
    """
    outcome = run(tmp_path, body)
    failed(outcome, "rank 1 on ", "ValueError: eta1 is odd", "Traceback (most recent call last)")
    assert outcome.text.count("Traceback") == 1 and "rank 0 on" not in outcome.text


@pytest.mark.fault(40)
def test_exception_in_a_thread(tmp_path: Path) -> None:
    body = """
    comm = start()
    def work():
        raise OSError("disk is gone")
    if comm.rank == 2:
        threading.Thread(target=work, name="writer").start()
    comm.barrier()
    if comm.rank != 2:
        comm.barrier()
    time.sleep(60)
    """
    failed(run(tmp_path, body), "rank 2 on ", "in thread writer: OSError: disk is gone")


@pytest.mark.fault(41)
@pytest.mark.parametrize("leave", ["sys.exit(0)", "sys.exit(3)", "return"])
def test_one_rank_leaves_early(tmp_path: Path, leave: str) -> None:
    body = f"""
    def main():
        comm = start()
        if comm.rank == 1:
            {leave}
        comm.barrier()
        finish(comm)
    main()
    """
    failed(run(tmp_path, body), "rank 1 on ", "left before the run had ended on all ranks")


@pytest.mark.fault(41)
def test_one_rank_ends_alone(tmp_path: Path) -> None:
    body = """
    comm = start()
    if comm.rank != 1:
        comm.gather([1.0])
    finish(comm, patience=1.0)
    """
    failed(run(tmp_path, body), "rank 1 on ", "some rank did not follow within 1 s")


def test_a_slow_rank_within_patience_is_no_fault(tmp_path: Path) -> None:
    outcome = run(tmp_path, "comm = start(); time.sleep(1.5 * (comm.rank == 0)); finish(comm, patience=8.0)", ranks=2)
    assert outcome.status == 0, outcome.text


def test_after_release_every_rank_leaves_when_it_likes(tmp_path: Path) -> None:
    body = """
    from apts_mpi.parallel.launch import release
    comm = start()
    release(comm)
    time.sleep(comm.rank == 0)
    print("done", comm.rank)
    """
    outcome = run(tmp_path, body, ranks=2)
    assert outcome.status == 0 and "done 0" in outcome.text and "done 1" in outcome.text, outcome.text


def test_after_resume_leaving_early_is_a_fault_again(tmp_path: Path) -> None:
    body = """
    from apts_mpi.parallel.launch import release, resume
    comm = start()
    release(comm)
    resume()
    if comm.rank == 0:
        comm.barrier()
    """
    failed(run(tmp_path, body, ranks=2), "rank 1 on ", "left before")


@pytest.mark.fault(40)
def test_when_all_ranks_fail_alike_rank_0_speaks(tmp_path: Path) -> None:
    body = """
    comm = start()
    comm.agree("config", "a" if comm.rank == 1 else "b")
    """
    outcome = run(tmp_path, body)
    failed(outcome, "rank 0 on ", "HandshakeError: config differs between the ranks: 2 of 3 ranks have 'b', but not rank 1 on")
    assert outcome.text.count("config differs") == 1 and "Traceback" not in outcome.text


@pytest.mark.fault(40)
@pytest.mark.parametrize(("error", "code"), [("KeyError('same')", 1), ("OSError('same')", 4), ("MemoryError('same')", 4)])
def test_one_traceback_when_all_ranks_raise_the_same(tmp_path: Path, error: str, code: int) -> None:
    outcome = run(tmp_path, f"comm = start(); raise {error}")
    failed(outcome, "rank 0 on ")
    assert outcome.status == code and outcome.text.count("Traceback") == 1, outcome.text
    assert outcome.text.startswith("rank 0 on ")


def test_a_program_may_go_on_after_an_error_of_all_ranks(tmp_path: Path) -> None:
    body = """
    import torch
    from torch import nn
    from apts_mpi import train
    from apts_mpi.parallel.handshake import HandshakeError
    torch.manual_seed(0)
    inputs, settings = torch.randn(40, 3), {"run": {"device": "cpu"}, "stop": {"iterations": 1}}
    for norm in (nn.BatchNorm1d(3), nn.LayerNorm(3)):
        try:
            train(nn.Sequential(norm, nn.Linear(3, 2)), inputs, inputs[:, 0].gt(0).long(), **settings)
            sys.stdout.write("trained\\n")
        except HandshakeError as error:
            sys.stdout.write("BatchNorm is refused\\n" if "BatchNorm" in str(error) else str(error))
            BETWEEN
    """
    outcome = run(tmp_path, body.replace("BETWEEN", ""), ranks=2, limit=60)
    assert outcome.status == 0 and outcome.text.count("is refused\n") == outcome.text.count("trained\n") == 2, outcome.text
    outcome = run(tmp_path, body.replace("BETWEEN", "sys.exit(0)"), ranks=2, limit=60)
    assert outcome.status == 0 and outcome.text.count("is refused\n") == 2 and "left before" not in outcome.text, outcome.text


@pytest.mark.fault(40)
@pytest.mark.parametrize(("error", "code"), [("ValueError('odd')", 1), ("ImportError('odd')", 4), ("ReductionError('odd')", 4)])
def test_the_launcher_hands_the_exit_code_on(tmp_path: Path, error: str, code: int) -> None:
    body = f"""
    from apts_mpi.parallel.handshake import ReductionError
    comm = start()
    if comm.rank == 1:
        raise {error}
    comm.barrier()
    time.sleep(60)
    """
    outcome = run(tmp_path, body, ranks=2)
    failed(outcome, "rank 1 on ", "odd")
    assert outcome.status == code, outcome.text


RANK_1 = 'os.environ.get("PMI_RANK", os.environ.get("OMPI_COMM_WORLD_RANK")) == "1"'


def test_exception_before_start(tmp_path: Path) -> None:
    body = f"""
    from apts_mpi.parallel.launch import arm
    arm()
    if {RANK_1}:
        raise ImportError("torch is broken here")
    start()
    time.sleep(60)
    """
    failed(run(tmp_path, body), "rank 1 on ", "ImportError: torch is broken here")


def test_others_do_not_wait_for_ever_for_a_rank_that_never_starts(tmp_path: Path) -> None:
    body = f"""
    if {RANK_1}:
        raise ImportError("torch is broken here")
    start(patience=2.0)
    time.sleep(60)
    """
    outcome = run(tmp_path, body)
    failed(outcome, "ImportError: torch is broken here")
    # Open MPI's launcher stops the others by itself, at once.
    assert "_start_mpi_on_all_ranks" in outcome.text or outcome.seconds < 2.0, outcome.text


def test_leaving_before_start_is_fine(tmp_path: Path) -> None:
    outcome = run(tmp_path, "from apts_mpi.parallel.launch import arm; arm(); sys.exit(0)", ranks=2)
    assert outcome.status == 0 and not outcome.text, outcome.text


@pytest.mark.fault(47)
@pytest.mark.parametrize("which", ["True", 'rank == "1"'], ids=["all", "mixed"])
def test_worlds_of_one_are_refused(tmp_path: Path, which: str) -> None:
    body = """
    rank = os.environ.get("PMI_RANK", os.environ.get("OMPI_COMM_WORLD_RANK"))
    if WHICH:
        for name in [name for name in os.environ if name.startswith(("PMI", "OMPI_COMM", "PRTE"))]:
            del os.environ[name]
        os.environ["SLURM_STEP_NUM_TASKS"] = "2"
        os.environ["SLURM_PROCID"] = rank
    comm = start()
    comm.barrier()
    time.sleep(60)
    """.replace("WHICH", which)
    outcome = run(tmp_path, body, ranks=2)
    failed(outcome, "LaunchError: SLURM_STEP_NUM_TASKS says 2 ranks, but", "sees 1", "mpiexec -n 2")


@pytest.mark.fault(40)
@pytest.mark.parametrize("wait", [0, 6])
def test_the_reason_of_one_rank_is_told_however_long_the_others_have_waited(tmp_path: Path, wait: int) -> None:
    body = f"""
    from apts_mpi.parallel.watchdog import watching
    from apts_mpi.safety import SafetyConfig
    comm = start()
    with watching(comm, SafetyConfig()):
        if comm.rank == 2:
            time.sleep({wait})
            raise KeyError("the reason")
        comm.barrier()
    """
    outcome = run(tmp_path, body, limit=LIMIT + wait)
    failed(outcome, "rank 2 on ", "KeyError: 'the reason'")
    assert outcome.text.count("Traceback") == 1


@pytest.mark.fault(40)
def test_of_ranks_that_fail_alike_one_speaks_if_rank_0_is_not_among_them(tmp_path: Path) -> None:
    outcome = run(tmp_path, "comm = start()\nif comm.rank:\n    raise KeyError('the reason')\ncomm.barrier()", ranks=4)
    failed(outcome, "rank 1 on ", "KeyError: 'the reason'")
    assert outcome.text.count("Traceback") == 1


@pytest.mark.fault(47)
def test_the_other_launcher_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = os.environ.get("OTHER_MPIEXEC")
    if not other:
        pytest.skip("set OTHER_MPIEXEC to the mpiexec of another MPI")
    monkeypatch.setattr(launch_cases, "MPIEXEC", other)
    failed(run(tmp_path, "comm = start(); time.sleep(60)", ranks=2), "rank 0 on ", "LaunchError", "the launcher ", "mpiexec -n 2")


@pytest.mark.fault(53)
def test_forked_child_cannot_reach_the_others_nor_stop_them(tmp_path: Path) -> None:
    body = """
    import warnings
    warnings.simplefilter("ignore")
    comm = start()
    if comm.rank == 1:
        for fault in (comm.barrier, lambda: sys.exit(0)):
            child = os.fork()
            if child == 0:
                fault()
                os._exit(0)
            print("child", os.waitpid(child, 0)[1] >> 8)
    comm.barrier()
    finish(comm)
    """
    outcome = run(tmp_path, body, ranks=2)
    assert outcome.status == 0, outcome.text
    assert "rank 1 was forked after MPI had started" in outcome.text
    assert "child 1" in outcome.text and "child 0" in outcome.text


def test_start_twice_and_other_hooks_stay(tmp_path: Path) -> None:
    body = """
    comm = start()
    other = start("tree")
    assert other.size == comm.size == 2 and other.reduction == "tree"
    finish(other)
    finish(comm)
    raise KeyError("after the end")  # an error of one process again
    """
    outcome = run(tmp_path, body, ranks=2)
    failed(outcome, "KeyError: 'after the end'")
    assert "rank 0 on" not in outcome.text
