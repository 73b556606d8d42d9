"""Hand a study to Slurm: a script per number of nodes, an array over the repetitions, and a report when all have ended.

One job makes one repetition on one number of nodes: its methods take turns inside, so they meet the same nodes.
"""

from __future__ import annotations

import shlex
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from apts_mpi import jobs
from apts_mpi.study.definition import Study, StudyError
from apts_mpi.study.plan import Run
from apts_mpi.systems import System

FOLDER = "jobs"  # in the study's
MARGIN, SPARE = 1.5, 300.0  # time limit: the estimate times MARGIN, and SPARE seconds to start, calibrate and wait for a quiet machine
LEAST = 600  # s, time limit of the shortest job
REPORTING = 1800  # s, of the report
_ONCE = "submit the study again instead: finished runs are kept, the missing ones are made"
_ALONE = "times are measured: nothing else may run on these nodes"


@dataclass(frozen=True)
class Script:
    """A batch script of a study."""

    name: str  # of its file
    text: str
    last: bool = False  # waits until all others have ended


def scripts(
    study: Study, runs: Sequence[Run], system: System, seconds: Mapping[int, float], account: str, partition: str
) -> list[Script]:  # fmt: skip
    """Scripts that make ``runs`` and report; ``seconds`` is the estimate for one repetition by nodes; StudyError."""
    if system.scheduler != "slurm":
        raise StudyError(f"{system.name} is no Slurm; in a job of yours type apts-mpi scale run {study.path} --nodes K")
    if not runs:
        raise StudyError(f"{study.path}: there is nothing left to run; apts-mpi scale report {study.path} writes the report")
    if set(str(study.home)) & set(" %\\\"'\n\t"):
        raise StudyError(f"{study.path}: folder must not hold blanks, quotes or %, or Slurm cannot write its logs there: {study.home}")
    try:
        counts = sorted({run.nodes for run in runs})
        made = [_runs(study, [run for run in runs if run.nodes == nodes], system, seconds, account, partition) for nodes in counts]
        return [*made, _report(study, system, account, partition)]
    except ValueError as error:
        raise StudyError(f"{study.path} on {system.name}: {error}") from None


def _runs(
    study: Study, runs: Sequence[Run], system: System, seconds: Mapping[int, float], account: str, partition: str
) -> Script:  # fmt: skip
    """The script of one number of nodes."""
    nodes = runs[0].nodes
    words = ["python", "-m", "apts_mpi", "scale", "run", str(study.path), "--nodes", str(nodes)]
    command = f'{shlex.join(words)} --repetition "$SLURM_ARRAY_TASK_ID" --launcher {jobs.SRUN}'
    job = jobs.Job(
        system, nodes, command, f"apts-mpi scale run {study.path}",
        ranks_per_node=-(-max(run.ranks for run in runs) // nodes), cpus_per_rank=study.threads, seconds=time_limit(study, runs, seconds),
        account=account, partition=partition, name=f"apts-{study.name}-{nodes}n",
        log=(f"{study.home / FOLDER}/%x-%A-%a.log", "a log for each repetition"),
        array=_indices([run.repetition for run in runs]), array_reason="repetitions", exclusive=_ALONE, once=_ONCE,
        share_gpu=all(run.config.run.share_gpu or run.config.run.device == "cpu" for run in runs),
        device_mpi=any(run.config.comm.transport == "device" for run in runs),
    )  # fmt: skip
    return Script(f"nodes-{nodes}.sbatch", jobs.render(job))


def _report(study: Study, system: System, account: str, partition: str) -> Script:
    """The script that gathers what the others left."""
    steps = [shlex.join(["python", "-m", "apts_mpi", "scale", action, str(study.path)]) for action in ("collect", "report")]
    job = jobs.Job(
        system, 1, "\n".join(steps), f"apts-mpi scale report {study.path}", ranks_per_node=1, cpus_per_rank=1, seconds=REPORTING,
        account=account, partition=partition, name=f"apts-{study.name}-report", once=_ONCE, share_gpu=True,
        log=(f"{study.home / FOLDER}/%x-%j.log", ""),
    )  # fmt: skip
    return Script("report.sbatch", jobs.render(job), last=True)


def time_limit(study: Study, runs: Sequence[Run], seconds: Mapping[int, float]) -> int:
    """Seconds for one repetition, in whole minutes; without an estimate what the study's time_limit allows its runs."""
    most = study.time_limit * max(Counter(run.repetition for run in runs).values())
    estimate = min(seconds.get(runs[0].nodes, most) * MARGIN, most) + SPARE
    return max(LEAST, -(-int(estimate) // 60) * 60)


def _indices(repetitions: Sequence[int]) -> str:
    """Of an array: 0-4, or 1,3 where others are done."""
    found = sorted(set(repetitions))
    whole = found == list(range(found[0], found[-1] + 1)) and len(found) > 1
    return f"{found[0]}-{found[-1]}" if whole else ",".join(map(str, found))


def submit(made: Sequence[Script], home: Path, dry_run: bool = False) -> list[str]:
    """Write the scripts into ``home``/jobs and submit them: job numbers, or with ``dry_run`` what would be typed; StudyError."""
    folder = home / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for script in made:
        (folder / script.name).write_text(script.text, encoding="utf-8")
    numbers: list[str] = []
    typed: list[str] = []
    for script in sorted(made, key=lambda script: script.last):
        # afterany: a run that failed must not take the report of all others with it
        after = [f"--dependency=afterany:{':'.join(numbers)}"] if script.last and numbers else []
        command = ["sbatch", "--parsable", *after, str(folder / script.name)]
        typed.append(shlex.join(command))
        numbers.append(f"<{script.name}>" if dry_run else _sbatch(command, numbers))
    return [f"{len(made)} scripts are in {folder}; nothing was submitted, what would be typed:", *typed] if dry_run else numbers


def _sbatch(command: Sequence[str], before: Sequence[str]) -> str:
    """The number of the job that ``command`` submits; StudyError says what stands already."""
    stands = f" Submitted before it: {' '.join(before)}; scancel takes them back." if before else ""
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise StudyError(f"there is no sbatch on PATH: type this where the cluster's Slurm is: {shlex.join(command)}") from None
    if answer.returncode:
        told = answer.stderr.strip() or f"exit code {answer.returncode}"
        raise StudyError(f"sbatch refuses {command[-1]}: {told}. Change the script or --account and --partition.{stands}")
    return answer.stdout.strip().partition(";")[0]  # with several clusters: number;cluster
