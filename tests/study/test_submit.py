"""Submitting a study: what the scripts of every machine ask for, and how they reach sbatch (a stand-in that writes down its words)."""

from __future__ import annotations

import os
import re
import shlex
import stat
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from apts_mpi.study import submit
from apts_mpi.study.definition import Study, StudyError, read_study
from apts_mpi.study.plan import Run, plan
from apts_mpi.study.submit import Script, scripts
from apts_mpi.systems import SYSTEMS, System, find

SLURM = [system for system in SYSTEMS if system.scheduler == "slurm"]
STUDY = """
name = "tiny"
ranks = [1, 2, 4, 6]
ranks_per_node = 4
threads = 2
samples_per_rank = 10
[[method]]
name = "APTS"
[[method]]
name = "SGD"
method = "sgd"
data.batch = 8
batch_per_rank = 2
"""


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.chdir(tmp_path)
    Path("my study.toml").write_text(STUDY)
    return read_study("my study.toml")


def made(study: Study, system: str = "slurm", seconds: dict[int, float] | None = None, runs: list[Run] | None = None) -> dict[str, str]:
    found = scripts(study, plan(study) if runs is None else runs, find(system), seconds or {}, "p_1", "fast")
    return {script.name: script.text for script in found}


def directives(script: str) -> dict[str, str]:
    lines = [line.removeprefix("#SBATCH ").split("  # ")[0] for line in script.splitlines() if line.startswith("#SBATCH ")]
    return dict(line.removeprefix("--").partition("=")[::2] for line in lines)


def runs_with(script: str, place: Path) -> list[list[str]]:
    """The words of every python that the script starts, in bash as a job has it, with stand-ins for python, module and srun."""
    tools = place / "bin"
    tools.mkdir(exist_ok=True)
    (tools / "python").write_text('#!/bin/bash\n[ "$1" = -c ] && { echo /nowhere; exit; }\nprintf "%s\\0" "$@" END >>words\n')
    (tools / "python").chmod(stat.S_IRWXU)
    environ = {"PATH": f"{tools}:/usr/bin:/bin", "SLURM_ARRAY_TASK_ID": "3", "SLURM_CPUS_PER_TASK": "2"}
    done = subprocess.run(["bash"], input="module() { :; }\n" + script, env=environ, cwd=place, capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, done.stderr
    words = (place / "words").read_text().split("\0")[:-1]
    (place / "words").unlink()
    calls: list[list[str]] = [[]]
    for word in words:
        calls = [*calls, []] if word == "END" else [*calls[:-1], [*calls[-1], word]]
    return calls[:-1]


@pytest.mark.parametrize("system", SLURM, ids=lambda system: system.name)
def test_a_script_per_node_count_and_one_report_for_every_machine(system: System, study: Study, tmp_path: Path) -> None:
    found = made(study, system.name)
    assert list(found) == ["nodes-1.sbatch", "nodes-2.sbatch", "report.sbatch"]
    for nodes, ranks in ((1, 4), (2, 3)):
        text = found[f"nodes-{nodes}.sbatch"]
        given = directives(text)
        assert (given["nodes"], given["ntasks-per-node"], given["array"]) == (str(nodes), str(ranks), "0-4")
        assert (given["account"], given["partition"], given["job-name"]) == ("p_1", "fast", f"apts-tiny-{nodes}n")
        assert given["output"] == "studies/tiny/jobs/%x-%A-%a.log"
        assert {"exclusive", "no-requeue"} <= set(given)
        if not system.masks:
            assert given["cpus-per-task"] == str(2 * system.cpus_per_core)
        assert "export OMP_NUM_THREADS=2 " in text and "APTS_STOP" not in text, "train stops as the study says"
        (words,) = runs_with(text, tmp_path)
        assert words[:-1] == [
            "-m", "apts_mpi", "scale", "run", "my study.toml", "--nodes", str(nodes), "--repetition", "3", "--launcher",
        ]  # fmt: skip
        launcher = shlex.split(words[-1])
        assert launcher[:3] == ["srun", "--kill-on-bad-exit=1", "-ul"]
        for option, _ in system.launch:
            assert option.split("{")[0].strip() in words[-1], "the machine's own binding"
    assert not re.search(r"\{\w+\}", "".join(found.values()).replace("{srun_options[*]}", "")), "a brace was not filled"


@pytest.mark.parametrize("system", SLURM, ids=lambda system: system.name)
def test_the_report_starts_no_ranks(system: System, study: Study, tmp_path: Path) -> None:
    text = made(study, system.name)["report.sbatch"]
    given = directives(text)
    assert (given["nodes"], given["ntasks-per-node"]) == ("1", "1")
    assert "array" not in given and "exclusive" not in given and "srun_options" not in text
    calls = [["-m", "apts_mpi", "scale", action, "my study.toml"] for action in ("collect", "report")]
    assert runs_with(text, tmp_path) == calls


def test_scripts_are_made_for_the_runs_given_alone(study: Study) -> None:
    runs = [run for run in plan(study) if (run.nodes, run.repetition) not in {(1, 0), (1, 2), (2, 0), (2, 1), (2, 2), (2, 3)}]
    found = made(study, runs=runs)
    assert directives(found["nodes-1.sbatch"])["array"] == "1,3,4"
    assert directives(found["nodes-2.sbatch"])["array"] == "4"
    assert list(made(study, runs=[run for run in runs if run.nodes == 2])) == ["nodes-2.sbatch", "report.sbatch"]


def test_time_limits_follow_the_estimates(study: Study) -> None:
    found = made(study, seconds={1: 3600.0, 2: 1.0})
    assert directives(found["nodes-1.sbatch"])["time"] == "01:35:00", "one and a half times the estimate, and five minutes"
    assert directives(found["nodes-2.sbatch"])["time"] == "00:10:00", "never below ten minutes"
    one = [run for run in plan(study) if run.nodes == 2 and run.repetition == 0]
    assert len(one) == 4, "two methods, strong and weak"
    short = replace(study, time_limit=1000.0)
    assert directives(made(short)["nodes-2.sbatch"])["time"] == "01:12:00", "without an estimate the limits of 4 runs, and five minutes"
    assert directives(made(short, seconds={2: 1e6})["nodes-2.sbatch"])["time"] == "01:12:00", "runs that take longer are ended"


@pytest.mark.parametrize(
    ("system", "change", "words"),
    [
        ("pbs", {}, "pbs is no Slurm; in a job of yours type apts-mpi scale run my study.toml --nodes K"),
        ("slurm", {"folder": "my results"}, "folder must not hold blanks, quotes or %"),
        ("slurm", {"folder": "50%"}, "folder must not hold blanks, quotes or %"),
        ("frontier", {"threads": 20}, "a node of frontier has 56 cores for jobs, got 4 ranks of 20"),
        ("alps", {"ranks_per_node": 0}, "a node of alps has 4 GPUs, got --ranks-per-node 6"),
    ],
)
def test_what_no_machine_can_do_is_refused(system: str, change: dict[str, object], words: str, study: Study) -> None:
    changed = replace(study, **change)  # type: ignore[arg-type]
    with pytest.raises(StudyError, match=re.escape(words)):
        made(changed, system)


def test_nothing_left_to_run(study: Study) -> None:
    with pytest.raises(StudyError, match=r"nothing left to run; apts-mpi scale report my study\.toml"):
        made(study, runs=[])


def test_a_bad_account_is_refused(study: Study) -> None:
    with pytest.raises(StudyError, match="--account must consist of letters"):
        scripts(study, plan(study), find("slurm"), {}, "a b", "")


SBATCH = """#!/bin/bash
printf '%s ' "$@" >>sbatch.words; echo >>sbatch.words
n=$(wc -l <sbatch.words)
[ "$n" -lt "${REFUSE:-99}" ] || { echo "sbatch: error: Invalid account" >&2; exit 1; }
echo "$((100 + n));cluster"
"""


@pytest.fixture
def sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in that numbers jobs from 101; the file its words are in."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "sbatch").write_text(SBATCH)
    (tools / "sbatch").chmod(stat.S_IRWXU)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    return tmp_path / "sbatch.words"


THREE = [Script("report.sbatch", "report\n", last=True), Script("nodes-1.sbatch", "one\n"), Script("nodes-2.sbatch", "two\n")]


def test_the_report_waits_for_all_others(sbatch: Path) -> None:
    assert submit.submit(THREE, Path("studies/tiny")) == ["101", "102", "103"]
    assert sbatch.read_text().splitlines() == [
        "--parsable studies/tiny/jobs/nodes-1.sbatch ",
        "--parsable studies/tiny/jobs/nodes-2.sbatch ",
        "--parsable --dependency=afterany:101:102 studies/tiny/jobs/report.sbatch ",
    ]
    assert Path("studies/tiny/jobs/nodes-2.sbatch").read_text() == "two\n"


def test_a_dry_run_writes_and_says_but_submits_nothing(sbatch: Path) -> None:
    told = submit.submit(THREE, Path("studies/tiny"), dry_run=True)
    assert told[0] == "3 scripts are in studies/tiny/jobs; nothing was submitted, what would be typed:"
    assert told[1] == "sbatch --parsable studies/tiny/jobs/nodes-1.sbatch"
    assert "--dependency=afterany:<nodes-1.sbatch>:<nodes-2.sbatch>" in told[-1]
    assert not sbatch.exists()
    assert Path("studies/tiny/jobs/report.sbatch").read_text() == "report\n"


def test_a_refusal_says_what_stands_already(sbatch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFUSE", "2")
    words = r"sbatch refuses .*nodes-2\.sbatch: sbatch: error: Invalid account.*Submitted before it: 101; scancel takes them back"
    with pytest.raises(StudyError, match=words):
        submit.submit(THREE, Path("studies/tiny"))
    assert len(sbatch.read_text().splitlines()) == 2, "nothing is submitted behind a refusal"


def test_without_sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StudyError, match=r"there is no sbatch on PATH: type this where the cluster's Slurm is: sbatch --parsable"):
        submit.submit(THREE, Path("studies/tiny"))
