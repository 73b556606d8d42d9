"""Job scripts: what every script must say, for every machine; what is refused; the jobs folder; the command line."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from apts_mpi import cli, jobs
from apts_mpi.__main__ import main
from apts_mpi.config import Config
from apts_mpi.presets import preset
from apts_mpi.systems import SYSTEMS, System, find

ROOT = Path(__file__).parents[2]
SLURM = [system for system in SYSTEMS if system.scheduler == "slurm"]
ODD = ("data/my set.toml", "--run.name", "a'b\"c $HOME `id` \\", "--run.dir=x\ny")


def job(system: str = "slurm", nodes: int = 2, words: tuple[str, ...] = (), **keys: object) -> jobs.Job:
    return jobs.train(find(system), nodes, words, keys.pop("config", Config()), **keys)  # type: ignore[arg-type]


def directives(script: str) -> dict[str, str]:
    """The Slurm directives that are on, by option, without their comments."""
    lines = [line.removeprefix("#SBATCH ").split(" # ")[0].strip() for line in script.splitlines() if line.startswith("#SBATCH ")]
    return dict(line.removeprefix("--").partition("=")[::2] for line in lines)


def launch(script: str) -> list[str]:
    """The words of the launcher line and its options, as bash sees them."""
    code = re.sub(r"^(srun|mpiexec) ", r"printf '%s\\0' \1 ", script, flags=re.MULTILINE)
    code = "python() { echo /nowhere; }; module() { :; }; cd() { :; }\n" + code
    environ = {"SLURM_CPUS_PER_TASK": "7", "SLURM_JOB_ID": "7", "PBS_O_WORKDIR": "/nowhere", "PATH": "/usr/bin:/bin"}
    ended = subprocess.run(["bash"], input=code, env=environ, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.split("\0")[:-1]


@pytest.mark.parametrize("words", [(), ODD], ids=["plain", "odd"])
@pytest.mark.parametrize("ranks", [0, 1, 4])
@pytest.mark.parametrize("restarts", [0, 5])
@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system.name)
def test_every_script_is_bash_and_starts_the_ranks_asked_for(
    system: System, restarts: int, ranks: int, words: tuple[str, ...], tmp_path: Path
) -> None:
    made = job(system.name, 3, words, ranks_per_node=ranks, restarts=restarts * (system.scheduler == "slurm"))
    script = jobs.render(made)
    (tmp_path / "job").write_text(script)
    assert subprocess.run(["bash", "-n", str(tmp_path / "job")], capture_output=True).stderr == b""
    assert not re.search(r"\{\w+\}", script.replace("{srun_options[@]}", "")), "a brace was not filled"
    assert script.startswith("#!") and script.endswith("\n")
    for source in system.sources:
        assert f"#   {source}\n" in script
    command = shlex.join(["python", "-m", "apts_mpi", "train", *words])
    assert script.count(command) == 1
    if not words:
        assert max(map(len, script.splitlines())) <= 160


@pytest.mark.parametrize("system", SLURM, ids=lambda system: system.name)
def test_slurm_directives(system: System) -> None:
    made = job(system.name, 5, account="p_1", partition="fast", seconds=5400)
    given = directives(jobs.render(made))
    assert (given["nodes"], given["ntasks-per-node"], given["time"]) == ("5", str(system.ranks), "01:30:00")
    assert (given["account"], given["partition"], given["job-name"]) == ("p_1", "fast", "apts")
    assert "no-requeue" in given and given["signal"] == "USR1@120"
    plain = jobs.render(job(system.name))
    assert directives(plain).get("partition", "") == system.partition
    assert "account" not in directives(plain)
    assert ("##SBATCH --account=<project>  # needed here" in plain) == system.charged


@pytest.mark.parametrize("system", SLURM, ids=lambda system: system.name)
@pytest.mark.parametrize("restarts", [0, 5])
def test_srun_gets_its_options_and_the_arguments_of_train_as_they_were_typed(system: System, restarts: int) -> None:
    words = launch(jobs.render(job(system.name, 2, ODD, restarts=restarts)))
    border = words.index("python")
    assert words[border:] == ["python", "-m", "apts_mpi", "train", *ODD]
    assert words[0] == "srun"
    assert "--kill-on-bad-exit=1" in words[:border]


@pytest.mark.parametrize("system", [system for system in SYSTEMS if system.cores], ids=lambda system: system.name)
def test_cores_of_a_node_are_shared_out_and_never_exceeded(system: System) -> None:
    for ranks in range(1, system.gpus + 1):
        made = job(system.name, 1, ranks_per_node=ranks)
        script = jobs.render(made)
        assert f"export OMP_NUM_THREADS={made.threads} " in script
        assert made.threads >= 1 and made.ranks * made.threads <= system.cores
        if not system.masks:
            assert directives(script)["cpus-per-task"] == str(made.threads * system.cpus_per_core)
    assert job(system.name).threads * system.gpus == system.cores, "a full node leaves cores idle"


def test_masks_of_lumi_are_seven_cores_each_and_do_not_meet() -> None:
    masks = [int(mask, 16) for mask in find("lumi-g").masks]
    assert [mask.bit_count() for mask in masks] == [7] * 8
    assert sum(masks).bit_count() == 56
    assert not any(mask & 0x0101010101010101 for mask in masks), "the first core of every 8 belongs to the system"
    words = launch(jobs.render(job("lumi-g", ranks_per_node=2)))
    assert "--cpu-bind=mask_cpu:fe000000000000,fe00000000000000" in words


def test_mpi_gets_device_buffers_only_when_asked() -> None:
    for name in ("alps", "lumi-g", "perlmutter", "frontier"):  # Cray MPICH: 1 aborts MPI_Init without the GTL library
        assert "\nexport MPICH_GPU_SUPPORT_ENABLED=0 " in jobs.render(job(name))
        on_device = jobs.render(job(name, config=preset("default", comm={"transport": "device"})))
        assert "\nexport MPICH_GPU_SUPPORT_ENABLED=1 " in on_device and "MPICH_GPU_SUPPORT_ENABLED=0" not in on_device


def test_pbs_asks_for_chunks_and_starts_all_ranks() -> None:
    asked = job("pbs", 3, ("--stop.epochs", "2"), ranks_per_node=4, cpus_per_rank=8, account="me", partition="q", seconds=90000)
    script = jobs.render(asked)
    for line in ("select=3:ncpus=32:mpiprocs=4:ompthreads=8", "place=scatter", "walltime=25:00:00"):
        assert f"#PBS -l {line}\n" in script
    assert "#PBS -A me\n" in script and "#PBS -q q\n" in script and "SBATCH" not in script
    assert 'cd "$PBS_O_WORKDIR"' in script
    assert launch(script) == ["mpiexec", "-n", "12", "python", "-m", "apts_mpi", "train", "--stop.epochs", "2"]


@pytest.mark.parametrize(("limit", "warning"), [(120, 30), (300, 75), (600, 120), (86400, 120)])
def test_the_ranks_are_warned_before_the_time_limit(limit: int, warning: int) -> None:
    script = jobs.render(job(seconds=limit))
    assert directives(script)["signal"] == f"USR1@{warning}", "without B:, which would be to the shell alone"
    assert "&& export SLURM_JOB_END_TIME=$end\n" in script and "STOP__WALL_TIME" not in script
    assert f"\nexport SLURM_JOB_END_TIME=$(($(date +%s) + {limit - 30}))\n" in jobs.render(job("pbs", seconds=limit))


TOOLS = {
    "squeue": "date -d '+10 minutes' +%Y-%m-%dT%H:%M:%S",
    "python": "echo /nowhere",
    "srun": '[ "$1" != --mpi=none ] || exit 0\necho "$* dir=$APTS_RUN__DIR resume=$APTS_RUN__RESUME '
    'left=$((SLURM_JOB_END_TIME - $(date +%s)))" >>said; exit "$CODE"',
    "scontrol": 'echo "scontrol $*" >>said',
}


@pytest.mark.fault(46)
@pytest.mark.parametrize(
    ("code", "starts", "ended", "again"),
    [("75", "", 75, True), ("75", "1", 75, True), ("75", "2", 75, False), ("0", "", 0, False), ("3", "1", 3, False), ("75", "3", 1, False)],
)
def test_a_script_with_restarts_goes_back_while_some_are_left(code: str, starts: str, ended: int, again: bool, tmp_path: Path) -> None:
    script = jobs.render(job(words=("run.toml",), restarts=2))
    given = directives(script)
    assert {"requeue", "open-mode", "signal"} <= set(given) and "no-requeue" not in given
    for name, text in TOOLS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o700)
    environ = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "1", "CODE": code}
    environ |= {"SLURM_RESTART_COUNT": starts} if starts else {}
    (tmp_path / "job").write_text(script)
    done = subprocess.run(["bash", "job"], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=20)
    said = (tmp_path / "said").read_text().splitlines() if (tmp_path / "said").exists() else []
    assert (done.returncode, "scontrol requeue 7" in said) == (ended, again), done.stderr
    calls = [line for line in said if "apts_mpi train" in line]
    assert len(calls) == (starts != "3") and all("train run.toml dir=runs/job-7 resume=auto left=" in line for line in calls)
    assert all(590 < int(line.rpartition("left=")[2]) <= 600 for line in calls)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 5400), ("1:00:00", 3600), ("00:02:30", 150), ("2-03:04:05", 183845), ("36:00:00", 129600)]
)
def test_time_limits(text: str, seconds: int) -> None:
    assert jobs.seconds(text) == seconds
    assert jobs.seconds(jobs.clock(seconds)) == seconds


@pytest.mark.parametrize("text", ["", "1:30", "1:60:00", "1-2", "1h", "-5", "1:00:00\n"])
def test_other_time_limits_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="--time must be minutes"):
        jobs.seconds(text)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"nodes": 0}, "--nodes must be at least 1, got 0"),
        ({"ranks_per_node": -1}, "--ranks-per-node must be at least 1, got -1"),
        ({"seconds": 60}, "--time must be at least two minutes, got 60 s"),
        ({"restarts": -1}, "--restarts must be at least 0, got -1"),
        ({"system": "pbs", "restarts": 1}, "--restarts needs Slurm; under PBS submit the job again"),
        ({"account": "a b"}, "--account must consist of letters"),
        ({"partition": "x\nrm -rf /"}, "--partition must consist of letters"),
        ({"system": "alps", "ranks_per_node": 5}, "a node of alps has 4 GPUs, got --ranks-per-node 5"),
        ({"system": "lumi-g", "ranks_per_node": 9, "config": preset("default", run={"device": "cpu"})}, "up to 8 ranks per node, got 9"),
        ({"system": "leonardo", "cpus_per_rank": 9}, "a node of leonardo has 32 cores for jobs, got 4 ranks of 9"),
        ({"nodes": 4, "config": preset("default", solver={"subdomains": 3})}, "solver.subdomains is 3, but 4 ranks need one each"),
        ({"system": "lumig"}, "did you mean lumi-g?"),
        ({"system": "summit"}, "--system must be one of slurm, pbs, alps, leonardo, lumi-g, perlmutter, frontier, juwels-"),
    ],
)
def test_what_cannot_be_is_refused(keys: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        job(**keys)  # type: ignore[arg-type]


def test_more_ranks_than_gpus_on_request() -> None:
    assert job("alps", ranks_per_node=8, config=preset("default", run={"device": "cpu"})).threads == 36
    assert job("alps", ranks_per_node=8, config=preset("default", run={"share_gpu": True})).total == 16


def test_command_line(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run.toml").write_text('[stop]\nepochs = 3\n')
    words = ["job", "render", "--system", "slurm", "--nodes", "2", "--", "run.toml", "--local.iters", "7"]
    assert main(words) == 0
    script = capsys.readouterr().out
    assert "python -m apts_mpi train run.toml --local.iters 7\n" in script
    assert main([*words[:6], "--out", "x.sbatch", *words[6:]]) == 0
    assert Path("x.sbatch").read_text() == script
    assert "sbatch x.sbatch" in capsys.readouterr().out
    monkeypatch.setenv("APTS_LOCAL__ITERS", "wrong")  # this shell's settings are not the job's
    assert main(["job", "render", "--system", "pbs", "--nodes", "1"]) == 0
    assert "train\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--nodes", "0", "--"], "--nodes must be at least 1"),
        (["--nodes", "1", "--ranks-per-node", "0"], "--ranks-per-node must be at least 1, got 0"),
        (["--nodes", "1", "--", "--iters", "3"], "did you mean --local.iters?"),
        (["--nodes", "1", "--", "nowhere.toml"], "file nowhere.toml: cannot be read"),
        (["--nodes", "1", "--", "train", "a.toml"], "behind -- stand [FILE.toml]"),
        (["--nodes", "1", "--", "--print_config"], "behind -- stand [FILE.toml]"),
        (["--nodes", "1", "--stop.epochs", "3"], "unrecognized arguments: --stop.epochs 3"),
        (["--", "--stop.epochs", "3"], "the following arguments are required: --nodes"),
    ],
)
def test_wrong_usage_ends_with_2(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["job", "render", "--system", "slurm", *words]) == cli.USAGE
    caught = capsys.readouterr()
    assert message in caught.err and not caught.out


def test_a_file_that_cannot_be_written(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["job", "render", "--system", "slurm", "--nodes", "1", "--out", str(tmp_path / "no" / "x")]) == cli.ENVIRONMENT
    assert "No such file or directory" in capsys.readouterr().err


def test_the_list_names_systems_sources_and_doubts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["job", "list"]) == 0
    text = capsys.readouterr().out
    for system in SYSTEMS:
        assert system.name in text and system.title in text
        assert all(source in text for source in system.sources)
        assert system.sources and all(source.startswith("https://") for source in system.sources)
    assert "to be checked: module load GCC OpenMPI CUDA; --cpu-bind=cores" in text


@pytest.mark.parametrize("path", sorted([*(ROOT / "jobs").glob("*.sbatch"), ROOT / "jobs" / "env.sh"]), ids=lambda path: path.name)
def test_scripts_of_the_jobs_folder_are_short_bash(path: Path) -> None:
    assert subprocess.run(["bash", "-n", str(path)], capture_output=True).stderr == b""
    text = path.read_text()
    assert len(text.splitlines()) <= 40
    if path.suffix == ".sbatch":
        given = set(directives(text))
        assert {"time", "output"} <= given and given & {"ntasks", "ntasks-per-node"}
        assert ("requeue" if path.stem == "requeue" else "no-requeue") in given
        assert "set -euo pipefail\n. jobs/env.sh\n" in text
