"""Job scripts for the machines of ``systems``: a checked request becomes a script that says why each line is there.

Starts neither MPI nor torch, and writes nothing but text.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from apts_mpi.config import Config
from apts_mpi.systems import DEVICE_MPI, HOST_MPI, WHEELS, Line, System

_TIME = re.compile(r"(?:(?:(\d+)-)?(\d+):([0-5]\d):([0-5]\d)|(\d+))")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.,-]*")
RANKS = 'srun "${srun_options[@]}"'  # starts the ranks of a job
SRUN = '"srun ${srun_options[*]}"'  # the same as one word for another program, which adds -n and -N
STALE = 'for f in /dev/shm/mpich_shm_*; do [ ! -O "$f" ] || grep -qs "$f" /proc/[0-9]*/maps || rm -f "$f"; done'
_ONCE = "not by itself; to go on: the same script with --resume RUN in place of the file"
LOST = 30  # s of a time limit under PBS that may be over when the script starts
AGAIN = 75  # exit code: saved before its end, please start again
_SAVED = "to the ranks, up to a minute earlier than said: they save, and end together with 75"


@dataclass(frozen=True)
class Job:
    """What is asked for and what it runs; ValueError names the option that cannot be met."""

    system: System
    nodes: int
    command: str  # the shell line at the end; RANKS and SRUN stand in it for srun with this machine's options
    what: str = "apts-mpi train"
    ranks_per_node: int = 0  # 0: the system's
    cpus_per_rank: int = 0  # cores; 0: a fair share of the node, 1 where its size is unknown
    seconds: int = 3600
    account: str = ""
    partition: str = ""  # empty: the system's
    name: str = "apts"
    log: Line = ("%x-%j.log", "one log; the run directory holds the results")
    array: str = ""  # indices, as 0-4; empty: one job
    array_reason: str = ""
    exclusive: str = ""  # the reason why nothing else may be on the nodes; empty: others may
    once: str = _ONCE  # the reason why Slurm must not start it again
    restarts: int = 0  # how often it goes back to the queue when its time is over before its work is
    warned: bool = False  # the ranks understand USR1
    share_gpu: bool = False  # more ranks than GPUs are meant, or none is used
    device_mpi: bool = False  # MPI sums in device memory

    def __post_init__(self) -> None:
        for option in ("nodes", "ranks_per_node", "cpus_per_rank", "restarts"):
            low = int(option == "nodes")
            if getattr(self, option) < low:
                least = 0 if option == "restarts" else 1
                raise ValueError(f"--{option.replace('_', '-')} must be at least {least}, got {getattr(self, option)}")
        if self.seconds < 120:
            raise ValueError(f"--time must be at least two minutes, got {self.seconds} s")
        if self.restarts and self.system.scheduler != "slurm":
            raise ValueError("--restarts needs Slurm; under PBS submit the job again, with --resume RUN in place of the file")
        for option in ("account", "partition"):
            if getattr(self, option) and not _NAME.fullmatch(getattr(self, option)):
                raise ValueError(f"--{option} must consist of letters, digits and _ . , -, got {getattr(self, option)!r}")
        self._check_node()

    def _check_node(self) -> None:
        system = self.system
        if system.gpus and self.ranks > system.gpus and not self.share_gpu:
            raise ValueError(f"a node of {system.name} has {system.gpus} GPUs, got --ranks-per-node {self.ranks}; see run.share_gpu")
        if system.masks and self.ranks > len(system.masks):
            raise ValueError(f"{system.name} is known for up to {len(system.masks)} ranks per node, got {self.ranks}")
        if system.cores and self.ranks * self.threads > system.cores:
            raise ValueError(f"a node of {system.name} has {system.cores} cores for jobs, got {self.ranks} ranks of {self.threads}")

    @property
    def ranks(self) -> int:
        """Per node."""
        return self.ranks_per_node or self.system.ranks

    @property
    def total(self) -> int:
        """Ranks."""
        return self.nodes * self.ranks

    @property
    def threads(self) -> int:
        """Per rank: its share of the cores, a GPU's share where there are fewer ranks than GPUs."""
        return self.cpus_per_rank or max(1, self.system.cores // max(self.ranks, self.system.gpus, 1))


def train(system: System, nodes: int, words: Sequence[str], config: Config, **asked: Any) -> Job:
    """A job of ``apts-mpi train WORDS``, which mean ``config``; ``asked`` are fields of Job; ValueError as there."""
    run, subdomains = config.run, config.solver.subdomains
    command = shlex.join(["python", "-m", "apts_mpi", "train", *words])
    job = Job(
        system, nodes, f"{RANKS} {command}" if system.scheduler == "slurm" else command, share_gpu=run.share_gpu or run.device == "cpu",
        warned=True, device_mpi=config.comm.transport == "device", **asked,
    )  # fmt: skip
    if 0 < subdomains < job.total:
        raise ValueError(f"solver.subdomains is {subdomains}, but {job.total} ranks need one each; ask for fewer, or set it to 0")
    return job


def seconds(text: str) -> int:
    """Seconds of a time limit: minutes, H:MM:SS or D-HH:MM:SS; ValueError else."""
    found = _TIME.fullmatch(text)
    if not found:
        raise ValueError(f"--time must be minutes, H:MM:SS or D-HH:MM:SS, got {text!r}")
    days, hours, minutes, rest, alone = (int(part or 0) for part in found.groups())
    return 60 * alone + ((24 * days + hours) * 60 + minutes) * 60 + rest


def clock(total: int) -> str:
    """H:MM:SS, which Slurm and PBS both understand."""
    return f"{total // 3600:02d}:{total // 60 % 60:02d}:{total % 60:02d}"


def render(job: Job) -> str:
    """The job script of a request; it ends with a line end."""
    parts = [*_head(job), *(_slurm(job) if job.system.scheduler == "slurm" else _pbs(job))]
    return "\n".join(parts) + "\n"


def _head(job: Job) -> Iterator[str]:
    yield "#!/usr/bin/env bash"
    yield f"# {job.what} on {job.system.title}:"
    yield f"# {_count(job.nodes, 'node')} x {_count(job.ranks, 'rank')} x {_count(job.threads, 'core')}. Submit it from the folder"
    yield "# that holds .venv and that relative paths in the settings start from."
    yield "# What says \"check\" is not confirmed by a page of the centre. The pages:"
    yield from (f"#   {source}" for source in job.system.sources)


def _count(number: int, name: str) -> str:
    return f"{number} {name}" + "s" * (number != 1)


def _fill(job: Job, text: str) -> str:
    """``text`` with the numbers of the job in its braces."""
    numbers = {"nodes": job.nodes, "ranks": job.ranks, "total": job.total, "threads": job.threads, "gpus": job.system.gpus}
    numbers["cpus"] = job.threads * job.system.cpus_per_core
    for name, value in {**numbers, "masks": ",".join(job.system.masks[: job.ranks])}.items():
        text = text.replace(f"{{{name}}}", str(value))
    return text


def _lines(job: Job, lines: Sequence[Line], before: str = "") -> Iterator[str]:
    """Lines with their reasons; a directive that begins with # is switched off."""
    for text, reason in lines:
        start = f"#{before}{text[1:]}" if before and text.startswith("#") else before + text
        yield _fill(job, start) + (f"  # {reason}" if reason else "")


def _directives(job: Job) -> Iterator[Line]:
    """What sbatch is asked for, without #SBATCH."""
    system, partition = job.system, job.partition or job.system.partition
    yield f"--job-name={job.name}", "the log is called by it"
    yield f"--output={job.log[0]}", job.log[1]
    if job.array:
        yield f"--array={job.array}", job.array_reason
    yield "--nodes={nodes}", ""
    yield "--ntasks-per-node={ranks}", "ranks" + (", one per GPU" if system.gpus else "")
    if not system.masks:
        yield "--cpus-per-task={cpus}", "a rank's share of the node" if system.cores else "cores of a rank, for its threads"
    yield f"--time={clock(job.seconds)}", ""
    if job.exclusive:
        yield "--exclusive", job.exclusive
    if job.account:
        yield f"--account={job.account}", ""
    else:
        yield "#--account=<project>", "needed here" if system.charged else "if the centre asks for it"
    if partition:
        yield f"--partition={partition}", "" if job.partition else system.partition_reason
    if job.warned:
        yield f"--signal=USR1@{min(120, job.seconds // 4)}", _SAVED
    if job.restarts:
        yield "--requeue", "when its time is over before its work is, and after a lost node"
        yield "--open-mode=append", "the log goes on where the last start left it"
    else:
        yield "--no-requeue", job.once
    yield from system.resources


def _slurm(job: Job) -> Iterator[str]:
    """Directives, environment and srun."""
    yield from _lines(job, list(_directives(job)), "#SBATCH ")
    yield from _lines(job, job.system.setup)
    yield "set -euo pipefail"
    yield from _environment(job)
    if job.warned:
        yield "# When the job ends, for the ranks, which stop in time; newer Slurm sets this itself."
        yield 'end=$(date +%s -d "$(squeue -h -j "$SLURM_JOB_ID" -o %e)") && export SLURM_JOB_END_TIME=$end'
    if not job.system.masks:
        yield "export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK  # Slurm 22.05 and newer hand --cpus-per-task to srun by this alone"
    if RANKS in job.command or SRUN in job.command:
        yield "srun_options=("
        yield from (f"    {line}" for line in _lines(job, job.system.launch))
        yield ")"
    yield from _again(job) if job.restarts else [job.command]


def _again(job: Job) -> Iterator[str]:
    """The command, and the queue once more if it says that it has more to do."""
    yield "export APTS_RUN__RESUME=auto APTS_RUN__DIR=${APTS_RUN__DIR:-runs/job-$SLURM_JOB_ID}  # the same folder at every start"
    yield f"most={job.restarts} starts=${{SLURM_RESTART_COUNT:-0}} told= code=0  # Slurm counts, those after a lost node too"
    yield '[ "$starts" -le "$most" ] || exit 1'
    if WHEELS[0] in job.system.environment:
        yield "# What a killed mpich left: steps have the same numbers again, and MPI_Init hangs on it. Ours, mapped by none of ours."
        yield f"stale='{STALE}'"
        yield f'[ "$starts" = 0 ] || srun --mpi=none --ntasks-per-node=1 --ntasks={job.nodes} bash -c "$stale"'
    yield f"{job.command} &  # in the background, or bash hears signals only afterwards"
    yield "trap 'told=1' TERM  # scancel or the time limit, which the ranks hear too"
    yield "while kill -0 $! 2>/dev/null; do wait $! || true; done  # a signal ends wait, not the command"
    yield "wait $! || code=$?"
    yield f'[ $code != {AGAIN} ] || [ -n "$told" ] || [ "$starts" -ge "$most" ] || scontrol requeue "$SLURM_JOB_ID"  # this kills the job'
    yield "exit $code"


def _pbs(job: Job) -> Iterator[str]:
    """Directives, environment and mpiexec; reasons stand on lines of their own, for qsub reads directives to the line end."""
    yield f"#PBS -N {job.name}"
    yield "#PBS -j oe"
    yield "# a chunk per node: cores, ranks, and threads per rank"
    yield f"#PBS -l select={job.nodes}:ncpus={job.ranks * job.threads}:mpiprocs={job.ranks}:ompthreads={job.threads}"
    yield "# each chunk on a node of its own; GPUs, where there are some, are a resource that the site names: check"
    yield "#PBS -l place=scatter"
    yield f"#PBS -l walltime={clock(job.seconds)}"
    yield f"#PBS -A {job.account}" if job.account else "##PBS -A <project, if asked for>"
    yield f"#PBS -q {job.partition}" if job.partition else "##PBS -q <queue, if asked for>"
    yield f"# {job.once}"
    yield "#PBS -r n"
    yield "set -euo pipefail"
    yield 'cd "$PBS_O_WORKDIR"  # PBS starts in the home folder'
    yield from _environment(job)
    if job.warned:
        yield f"# When the job ends, less {LOST} s for its start: the ranks save and end in time, with {AGAIN}. No less right under PBS."
        yield f"export SLURM_JOB_END_TIME=$(($(date +%s) + {job.seconds - LOST}))"
    yield "# An MPI built for PBS finds hosts and ranks in $PBS_NODEFILE by itself; another one, as that of the mpich wheel, needs"
    yield '# -f "$PBS_NODEFILE" (Open MPI: --hostfile) and ssh between the nodes. The mpiexec must be that of mpi4py\'s MPI.'
    yield f"mpiexec -n {job.total} {job.command}"


def _environment(job: Job) -> Iterator[str]:
    """Python, threads and MPI, the same everywhere."""
    yield "[ ! -x .venv/bin/python ] || export PATH=$PWD/.venv/bin:$PATH  # else the python of the submitting shell"
    yield f"export OMP_NUM_THREADS={job.threads}  # threads of a rank; torch takes as many"
    yield from _lines(job, [DEVICE_MPI if job.device_mpi and line == HOST_MPI else line for line in job.system.environment])
