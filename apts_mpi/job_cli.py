"""``apts-mpi job list | render``: options in, exit code out; starts neither MPI nor torch."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from apts_mpi import jobs
from apts_mpi.config import Config
from apts_mpi.systems import SYSTEMS, System, find

USAGE, ENVIRONMENT = 2, 4
_RENDER = "apts-mpi job render --system NAME --nodes K [OPTIONS] -- [FILE.toml] [--section.key VALUE ...]"
_EXAMPLE = "example: apts-mpi job render --system lumi-g --nodes 2 --account project_465000000 -- run.toml --stop.epochs 20"


def add_job_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the ``job`` command and its two sub-commands."""
    job = commands.add_parser("job", help="write job scripts", description="Job scripts for Slurm and PBS, and for known machines.")
    actions = job.add_subparsers(dest="action", metavar="ACTION", required=True)
    actions.add_parser("list", help="the known machines", description="Print the known machines, and the pages their facts come from.")
    render = actions.add_parser("render", help="write one script", usage=_RENDER, description="Write a job script.", epilog=_EXAMPLE)
    render.add_argument("--system", required=True, metavar="NAME", help=", ".join(system.name for system in SYSTEMS))
    render.add_argument("--nodes", required=True, type=int, metavar="K", help="nodes")
    render.add_argument("--ranks-per-node", type=int, metavar="R", help="default: one per GPU, 1 where there are none")
    render.add_argument("--cpus-per-rank", type=int, metavar="C", help="cores of a rank (default: its share of the node; 1 if unknown)")
    render.add_argument("--time", default="1:00:00", metavar="T", help="limit: minutes, H:MM:SS or D-HH:MM:SS (default: %(default)s)")
    again = "times that the job goes back to the queue to go on, Slurm alone (default: %(default)s)"
    render.add_argument("--restarts", type=int, default=0, metavar="K", help=again)
    render.add_argument("--account", default="", metavar="A", help="project to charge")
    render.add_argument("--partition", default="", metavar="P", help="partition or queue (default: the system's)")
    render.add_argument("--out", metavar="FILE", help="file to write (default: print it)")


def split_train(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """What stands before the first ``--``, and the arguments of train behind it."""
    words = list(arguments)
    border = words.index("--") if "--" in words else len(words)
    return words[:border], words[border + 1 :]


def run_job(args: argparse.Namespace, words: Sequence[str], config: Callable[[], Config]) -> int:
    """Print or write what ``add_job_parser`` parsed; ``config`` is what the arguments ``words`` of train mean."""
    if args.action == "list":
        print("\n".join(line for system in SYSTEMS for line in _describe(system)))
        return 0
    try:
        text = jobs.render(_request(args, words, config()))
    except ValueError as error:
        return _complain(str(error), USAGE)
    if not args.out:
        print(text, end="")
        return 0
    try:
        Path(args.out).write_text(text, encoding="utf-8")
    except OSError as error:
        return _complain(f"cannot write {args.out}: {error.strerror}", ENVIRONMENT)
    system = find(args.system)
    missing = " (an account is needed there, --account; its line in the script is a comment)" if system.charged and not args.account else ""
    print(f"{args.out}: read it{missing}, then type: {'sbatch' if system.scheduler == 'slurm' else 'qsub'} {args.out}")
    return 0


def _request(args: argparse.Namespace, words: Sequence[str], config: Config) -> jobs.Job:
    for option in ("ranks_per_node", "cpus_per_rank"):
        if getattr(args, option) is not None and getattr(args, option) < 1:
            raise ValueError(f"--{option.replace('_', '-')} must be at least 1, got {getattr(args, option)}")
    return jobs.train(
        find(args.system), args.nodes, words, config, ranks_per_node=args.ranks_per_node or 0, cpus_per_rank=args.cpus_per_rank or 0,
        seconds=jobs.seconds(args.time), account=args.account, partition=args.partition, restarts=args.restarts,
    )  # fmt: skip


def _complain(text: str, code: int) -> int:
    print(f"apts-mpi job: {text}", file=sys.stderr, flush=True)
    return code


def _describe(system: System) -> Iterator[str]:
    node = [f"{system.gpus} GPUs"] * bool(system.gpus) + [f"{system.cores} cores"] * bool(system.cores)
    yield f"{system.name:15} {system.title}" + (f"; {' and '.join(node)} of a node for a job" if node else "")
    lines = (*system.resources, *system.setup, *system.launch, (f"--partition={system.partition}", system.partition_reason))
    checks = [text.lstrip("#") for text, reason in lines if reason.startswith("check")]
    if checks:
        yield f"{'':15} to be checked: {'; '.join(checks)}"
    yield from (f"{'':15} {source}" for source in system.sources)
