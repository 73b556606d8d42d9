"""One rank: the serial communicator, agreement sentences, devices and threads, the rules of launching."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

from apts_mpi.contracts import Communicator, Flag
from apts_mpi.parallel import devices, launch
from apts_mpi.parallel.comm import library_name
from apts_mpi.parallel.handshake import HandshakeError, handshake, verdict, versions
from apts_mpi.parallel.serial import SerialCommunicator
from apts_mpi.partition import tree_sum

CPU = torch.device("cpu")


class Ranks:
    """Plays several ranks that gathered ``texts``, one list for each question."""

    local_rank = 1
    host = "node1"

    def __init__(self, *answers: list[str]) -> None:
        self.answers = iter(answers)

    def gather_text(self, text: str) -> list[str]:
        return next(self.answers)


def test_sums_are_identities() -> None:
    comm: Communicator = SerialCommunicator()
    message = comm.plan(4, torch.float32, CPU, ["loss"])
    message.vector.copy_(torch.arange(4.0))
    message.put("loss", [0.5, 0.25])
    message.raise_flag(Flag.STOP)
    comm.sum_(message)
    assert message.vector.tolist() == [0, 1, 2, 3]
    assert message.get("loss") == 0.75 and message.count(Flag.STOP) == 1
    message.put("loss", [1.0])
    comm.sum_(message, vector=False)
    assert message.get("loss") == 1.0 and message.count(Flag.STOP) == 0
    assert (comm.messages, comm.bytes) == (2, 0)
    assert isinstance(comm, SerialCommunicator) and (comm.large, comm.small) == (1, 1)


def test_other_verbs() -> None:
    comm = SerialCommunicator()
    comm.agree("config", "x")
    comm.barrier()
    assert comm.share("é") == "é" and comm.gather([1, 2.5]) == [[1.0, 2.5]] and comm.gather_text("a") == ["a"]
    with pytest.raises(ValueError, match="only 1-D"):
        comm.broadcast_(torch.zeros(2, 2))
    with pytest.raises(TypeError, match="made by plan"):
        comm.sum_(object())  # type: ignore[arg-type]
    message = comm.plan(2, torch.float32, CPU, [])
    message.vector = torch.zeros(2)
    with pytest.raises(ValueError, match="was replaced"):
        comm.sum_(message)


def test_serial_room_imports_neither_mpi_nor_torch() -> None:
    code = (
        "import sys, os; from apts_mpi.parallel.launch import start, finish; from apts_mpi.parallel import devices; c = start(); finish(c);"
        "bad = {'mpi4py', 'torch'} & set(sys.modules); sys.exit(f'{bad}' if bad or c.size != 1 else 0)"
    )
    clean = {key: value for key, value in launch.os.environ.items() if key not in launch.SIZES + launch.SIGNS}
    assert subprocess.run([sys.executable, "-c", code], env=clean, timeout=30).returncode == 0


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_tree_sum_is_the_written_tree(count: int) -> None:
    def tree(lo: int, hi: int) -> str:
        mid = (lo + hi) // 2
        return str(lo) if hi - lo == 1 else f"({tree(lo, mid)}+{tree(mid, hi)})"

    assert tree_sum([str(i) for i in range(count)], lambda a, b: f"({a}+{b})") == tree(0, count)


def test_tree_over_equal_groups_is_the_same_tree() -> None:
    def add(a: str, b: str) -> str:
        return f"({a}+{b})"

    whole = tree_sum([str(i) for i in range(24)], add)
    for ranks in (2, 4, 8):
        size = 24 // ranks
        groups = [tree_sum([str(i) for i in range(r * size, (r + 1) * size)], add) for r in range(ranks)]
        assert tree_sum(groups, add) == whole


def test_minority_is_named() -> None:
    text = verdict("config", ["a", "b", "a"], ["n0", "n1", "n2"], ["eta1 = 0.25", "eta1 = 0.5", "eta1 = 0.25"])
    assert text == "config differs between the ranks: 2 of 3 ranks have 'eta1 = 0.25', but not rank 1 on n1 ('eta1 = 0.5')"


def test_rank_0_breaks_a_tie_and_long_minorities_are_cut() -> None:
    assert "not rank 1 on n ('y')" in verdict("data", ["b", "a"], ["n", "n"], ["x", "y"])
    digests = ["a"] * 31 + [str(i) for i in range(30)]
    assert verdict("data", digests, ["n"] * 61, digests).endswith("rank 38 on n ('7') and 22 more")


def test_handshake_says_everything_that_differs() -> None:
    same = [["d", "d"]] * (1 + len(versions()))
    comm = Ranks(*same, ["a", "b"], ["n0", "n1"], ["x", "y"], ["d", "d"], ["a", "b"], ["n0", "n1"], ["p", "q"])
    with pytest.raises(HandshakeError) as caught:
        handshake(comm, {"config": "x", "sizes": "s", "data": "p"})
    assert [line.split()[0] for line in str(caught.value).splitlines()] == ["config", "data"]
    handshake(SerialCommunicator(), {"config": "x"})


def test_versions_hold_python_and_torch() -> None:
    assert versions()["python"] == ".".join(map(str, sys.version_info[:3])) and versions()["torch"].startswith("2")


@pytest.fixture
def one_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    taken: list[int] = []
    monkeypatch.setattr(devices, "visible_gpus", lambda: ["G0", "G1"])
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    yield taken


def test_gpu_by_local_rank(one_gpu: list[int]) -> None:
    assert devices.choose_device("auto", Ranks(["node1 G0", "node1 G1"])) == torch.device("cuda", 1)
    assert one_gpu == [1]


@pytest.mark.fault(50)
def test_shared_gpu_only_when_asked(one_gpu: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "visible_gpus", lambda: ["G0"])
    with pytest.raises(HandshakeError, match="ranks 0, 1 on node1 G0; .*set run.share_gpu to true"):
        devices.choose_device("cuda", Ranks(["node1 G0", "node1 G0"]))
    assert devices.choose_device("cuda", Ranks(["node1 G0", "node1 G0"]), share_gpu=True) == torch.device("cuda", 0)


def test_ranks_on_one_gpu_are_counted(one_gpu: list[int]) -> None:
    seen = ["node1 G0", "node1 G1", "node2 G1", "node1 G1"]
    assert devices.sharers(torch.device("cuda", 1), Ranks(seen)) == 2


@pytest.mark.fault(50)
def test_missing_gpu_is_refused_or_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "visible_gpus", list)
    assert devices.choose_device("auto", Ranks(["", ""])) == CPU
    assert devices.choose_device("cpu", Ranks()) == CPU
    for wanted, seen in (("cuda", ["", ""]), ("auto", ["node0 G0", ""])):
        with pytest.raises(HandshakeError, match="sees none on rank .*1; set run.device to cpu"):
            devices.choose_device(wanted, Ranks(seen))


def test_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    monkeypatch.setattr(devices, "affinity", lambda: [0, 1, 2, 3])
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    mine, other = "node1 [0, 1, 2, 3]", "node2 [0, 1, 2, 3]"
    try:
        assert devices.set_threads(0, Ranks([mine, mine, other]), {}) == 2
        assert devices.set_threads(0, Ranks([mine] * 9), {}) == 1
        assert devices.set_threads(0, Ranks([mine]), {"OMP_NUM_THREADS": "3,1"}) == 3
        assert devices.set_threads(2, Ranks([mine]), {"OMP_NUM_THREADS": "3"}) == 2
    finally:
        monkeypatch.undo()
        torch.set_num_threads(before)


def test_hosts_whose_threads_share_cores() -> None:
    seen = ['["a", [0, 1]]', '["a", [0, 1]]', '["b", [0]]', '["b", [1]]']
    assert devices.crowds(Ranks(seen), 1) == [] and devices.crowds(Ranks(seen), 2) == [("a", 2, 2), ("b", 2, 2)]
    assert devices.crowds(Ranks(['["a", [3]]', '["a", [3]]', '["b", [4]]']), 1) == [("a", 2, 1)]


def test_gpus_of_a_job_are_known_from_its_variables() -> None:
    assert all(devices.allotted_gpus(known) == "" for known in ({}, {"SLURM_GPUS_ON_NODE": "0"}, {"SLURM_GPUS_ON_NODE": ""}))
    assert devices.allotted_gpus({"SLURM_GPUS_ON_NODE": "4"}) == "SLURM_GPUS_ON_NODE = 4"


def test_launched_only_with_a_sign_of_several_ranks() -> None:
    assert not launch.launched({})
    assert not launch.launched({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "8"})
    assert launch.launched({"SLURM_STEP_NUM_TASKS": "2"})
    assert launch.launched({"PMI_RANK": "0", "PMI_SIZE": "1"})


@pytest.mark.parametrize(
    ("size", "environ", "good"),
    [
        (2, {"PMI_SIZE": "2"}, True),
        (1, {}, True),
        (1, {"PMI_SIZE": "1"}, True),
        (8, {"PMI_SIZE": "8", "SLURM_STEP_NUM_TASKS": "2"}, True),  # mpiexec in a job: srun starts one proxy per node
        (1, {"OMPI_COMM_WORLD_SIZE": "2"}, False),
        (1, {"SLURM_STEP_NUM_TASKS": "4"}, False),
        (3, {"PMI_SIZE": "4"}, False),
    ],
)
def test_size_against_the_launchers(size: int, environ: dict[str, str], good: bool) -> None:
    if good:
        return launch.check_size(size, environ, "MPICH 5")
    with pytest.raises(launch.LaunchError, match=rf"says \d ranks, but MPICH 5 sees {size}.*mpiexec -n \d .*--mpi=pmi2"):
        launch.check_size(size, environ, "MPICH 5")


def test_launcher_against_the_library() -> None:
    launch.check_launcher({"OMPI_COMM_WORLD_SIZE": "2"}, "Open MPI v5")
    launch.check_launcher({"PMI_SIZE": "2"}, "MPICH 5")
    with pytest.raises(launch.LaunchError, match=r"the launcher is Open MPI's, the library is MPICH 5\. Type: .*mpiexec -n 2"):
        launch.check_launcher({"OMPI_COMM_WORLD_SIZE": "2"}, "MPICH 5")


def test_advice_names_the_launcher_of_the_library() -> None:
    assert "--mpi=pmix" in launch.advice(4, "Open MPI v5.0.11")


@pytest.mark.fault(54)
def test_thread_level_too_low_is_refused() -> None:
    with pytest.raises(launch.LaunchError, match="thread level 0, 1"):
        launch.check_thread_level(0, 1, "MPICH 5")
    launch.check_thread_level(1, 1, "MPICH 5")


def test_library_names_are_one_short_line() -> None:
    assert library_name("Open MPI v5.0.11, package: Open MPI x, ident\0\0") == "Open MPI v5.0.11"
    assert library_name("MPICH Version:      5.0.2\nMPICH Release date: x\n") == "MPICH Version: 5.0.2"
