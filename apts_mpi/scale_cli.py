"""``apts-mpi scale plan | run | submit | status | collect | report | whatif``: a scaling study from one file."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from apts_mpi.interrupt import INTERRUPTED

if TYPE_CHECKING:
    from apts_mpi.study.definition import Study

USAGE, ENVIRONMENT = 2, 4
ABOUT = """A scaling study from one file. plan says what it will cost; run makes the runs here (submit: on Slurm), interleaved, and goes
on where it stopped; report writes tables, figures and the methods paragraph. docs/scaling.md describes the file."""


def add_scale_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the ``scale`` command and its sub-commands."""
    scale = commands.add_parser("scale", help="scaling studies", description=ABOUT)
    actions = scale.add_subparsers(dest="action", metavar="ACTION", required=True)
    texts = {
        "plan": "say which runs there are and what they cost; starts nothing",
        "run": "make the runs that are missing, on this machine or inside a job",
        "submit": "hand the runs to Slurm: a job per node count, an array over repetitions, a report at the end",
        "status": "say what is done, failed and missing",
        "collect": "gather the finished runs into points.json",
        "report": "write tables, figures and the methods paragraph",
        "whatif": "extrapolate to other rank counts and networks by the cost model",
    }
    parsers = {}
    for name, text in texts.items():
        parsers[name] = parser = actions.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        parser.add_argument("study", metavar="STUDY.toml", help="the study")
    _add_run(parsers["run"])
    _add_submit(parsers["submit"])
    for name in ("report", "whatif"):
        parsers[name].add_argument("--out", metavar="FOLDER", help="where to write (default: report/ in the study's folder)")
    _add_whatif(parsers["whatif"])


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--nodes", type=int, metavar="K", help="only runs on so many nodes")
    parser.add_argument("--scaling", choices=["strong", "weak"], help="only runs of this kind")
    parser.add_argument("--repetition", type=int, metavar="I", help="only this repetition, from 0")
    what = "what starts the ranks, before -n P -N NODES (srun in a job, else mpiexec)"
    parser.add_argument("--launcher", default="", metavar="WORDS", help=what)


def _add_submit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--system", default="slurm", metavar="NAME", help="machine, as in job list (default: %(default)s)")
    parser.add_argument("--account", default="", metavar="A", help="project to charge")
    parser.add_argument("--partition", default="", metavar="P", help="partition (default: the system's)")
    parser.add_argument("--dry-run", action="store_true", help="write the scripts, submit nothing")


def _add_whatif(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--samples", type=int, default=64, metavar="B", help="samples per rank and gradient (default: %(default)s)")
    parser.add_argument("--latency", type=float, metavar="S", help="of a network of your own, with --bandwidth")
    parser.add_argument("--bandwidth", type=float, metavar="B/S", help="bytes per second of it")
    parser.add_argument("--flops", type=float, metavar="F", help="per second of a rank, in place of the measured machine, with --memory")
    parser.add_argument("--memory", type=float, metavar="B/S", help="bytes per second of a rank's memory")


def run_scale(args: argparse.Namespace) -> int:
    """Do what ``add_scale_parser`` parsed; 2 if the study is wrong, 4 if disk, launcher or a package fails."""
    from apts_mpi.study.definition import StudyError

    try:
        return _act(args)
    except (StudyError, ValueError, FileNotFoundError) as error:
        return _complain(str(error), USAGE)
    except BrokenPipeError:
        raise
    except (OSError, ImportError) as error:
        return _complain(str(error), ENVIRONMENT)
    except KeyboardInterrupt:
        return _complain("stopped; the finished runs are kept, the same command goes on", INTERRUPTED)


def _act(args: argparse.Namespace) -> int:
    from apts_mpi.scale import estimate, make, results
    from apts_mpi.study import describe
    from apts_mpi.study.definition import read_study
    from apts_mpi.study.plan import plan

    study = read_study(args.study)
    runs = plan(study)
    if args.action == "plan":
        _say(*estimate.plan_study(study))
    elif args.action == "status":
        _say(*describe.status(study, runs, [make.state(run) for run in runs]))
    elif args.action == "run":
        chosen = make.select(runs, args.nodes, args.scaling, args.repetition)
        if not chosen:
            raise ValueError(f"no run of {args.study} fits --nodes, --scaling and --repetition; see apts-mpi scale plan {args.study}")
        first = args.repetition is None or all(run.done for run in runs if run.repetition < args.repetition)
        return make.run_study(study, chosen, args.launcher, first, _say)  # of several jobs the first one calibrates
    elif args.action == "submit":
        _say(*estimate.submit_study(study, args.system, args.account, args.partition, args.dry_run))
    elif args.action == "collect":
        points = results.collect_study(study)
        _say(f"{len(points.points)} of {points.planned} runs in {study.home / 'points.json'}")
    elif args.action == "report":
        _say(*(str(path) for path in results.report_study(study, args.out)))
    else:
        _say(*_whatif(study, args))
    return 0


def _whatif(study: Study, args: argparse.Namespace) -> list[str]:
    """The lines of ``scale whatif``; ValueError for half a network or half a machine."""
    from apts_mpi.scale import results
    from apts_mpi.study.whatif import Fabric

    for pair in (("latency", "bandwidth"), ("flops", "memory")):
        given = [getattr(args, name) for name in pair]
        if (given[0] is None) != (given[1] is None) or any(value is not None and not value > 0 for value in given):
            raise ValueError(f"--{pair[0]} and --{pair[1]} go together, and must be positive")
    if args.samples < 1:
        raise ValueError(f"--samples must be at least 1, got {args.samples}")
    own = [Fabric("yours", args.latency, args.bandwidth, "stated on the command line")] if args.latency else []
    machine = results.stated(study, args.flops, args.memory) if args.flops else None
    return results.whatif_study(study, args.out, args.samples, own, machine)


def _say(*lines: str) -> None:
    for line in lines:
        print(line, flush=True)


def _complain(text: str, code: int) -> int:
    print(f"apts-mpi scale: {text}", file=sys.stderr, flush=True)
    return code
