"""The command line: turns what the user typed into a Command, without MPI and without torch.

Exit codes: 0 finished, 2 usage, 3 numerical failure, 4 environment, 75 stopped on request, to go on later, 130 interrupted at once by
Ctrl-C; any other: a bug.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NoReturn, TextIO

from apts_mpi import __version__, bench_cli, data_cli, job_cli, scale_cli, settings, tune_cli
from apts_mpi.hints import of_usage
from apts_mpi.train_settings import read_settings, unread

if TYPE_CHECKING:
    from apts_mpi.config import Config
    from apts_mpi.contracts import Communicator

USAGE, NUMERICAL, ENVIRONMENT = 2, 3, 4
TRAIN = "apts-mpi train [FILE.toml] [--resume RUN] [--section.key VALUE ...] [--print_config]"
UNKEPT = "interrupted before anything new was kept"
PRECEDENCE = "A value comes from the command line, else APTS_SECTION__KEY, FILE.toml, the preset, the method, else the default in brackets."


class UsageError(ValueError):
    """The user typed something that cannot be done; the message says what to type."""


@dataclass(frozen=True)
class Command:
    """What to do: ``run`` returns the exit code; a parallel one gets a Communicator, every rank calls it."""

    run: Callable[[Communicator | None], int]
    parallel: bool = False
    interrupted: str = "interrupted"  # what is said when Ctrl-C ends it at once


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}{of_usage(message)}\n{self.format_usage().strip()}")


def say(text: str, style: str = "", stream: TextIO | None = None, end: str = "\n") -> None:
    """Print text, in colour where a person watches."""
    stream = stream or sys.stdout
    if style and stream.isatty() and "NO_COLOR" not in os.environ:
        from rich.console import Console

        Console(file=stream).print(text, style=style, markup=False, highlight=False, soft_wrap=True, end=end)
    else:
        print(text, file=stream, end=end, flush=True)


def complain(text: str) -> None:
    """Print an error on stderr."""
    say(f"apts-mpi: {text}", "red", sys.stderr)


def split_options(arguments: Sequence[str], own: Sequence[str] = ()) -> tuple[list[str], list[tuple[str, str | None]]]:
    """What argparse should see, ``own`` options among it, and the dotted options as (key, text); text is None if it is missing.

    A value may start with one dash (``-inf``, ``-1e-3``), not with two; hyphens in keys are underscores.
    """
    plain, pairs, rest = {"--help", "--print_config", "--print-config"}, list[tuple[str, str | None]](), list(arguments)
    kept = []
    while rest:
        token = rest.pop(0)
        if not token.startswith("--") or token in plain:
            kept.append(token)
            continue
        name, given, text = token[2:].partition("=")
        has_value = bool(given) or (bool(rest) and not rest[0].startswith("--"))
        value = text if given else rest.pop(0) if has_value else None
        if name in own:
            kept.append(f"--{name}" if value is None else f"--{name}={value}")
        else:
            pairs.append((name.replace("-", "_"), value))
    return kept, pairs


def _add_train(commands: argparse._SubParsersAction[_Parser]) -> None:
    """The train command; its dotted options are listed for --help only, ``settings`` reads them."""
    layout = partial(argparse.HelpFormatter, max_help_position=32)
    train = commands.add_parser("train", help="train a network", usage=TRAIN, description=PRECEDENCE, formatter_class=layout)
    train.add_argument("file", nargs="?", metavar="FILE.toml", help="settings, as --print_config prints them")
    train.add_argument("--print_config", "--print-config", action="store_true", help="print every value and its source as TOML, and end")
    told = "resume the run in this folder from its last checkpoint, with its settings; limits (stop.*) may be changed"
    train.add_argument("--resume", metavar="RUN", help=told)
    groups = {name: train.add_argument_group(name, owner.__doc__) for name, owner in settings.sections().items()}
    for key in settings.keys().values():
        default = settings.as_toml(key.default).strip('"[]') or "empty"
        target = groups.get(key.name.partition(".")[0], train)
        target.add_argument(f"--{key.name}", metavar=key.expects, help=f"{key.meaning} [{default}]".replace("%", "%%"))


def _parser() -> _Parser:
    """The parser of everything but the dotted options."""
    parser = _Parser(prog="apts-mpi", description="Additive preconditioned trust-region training of neural networks over MPI.")
    parser.add_argument("--version", action="version", version=f"apts-mpi {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_train(commands)
    tune_cli.add_tune_parser(commands)
    data_cli.add_data_parser(commands)
    job_cli.add_job_parser(commands)
    bench_cli.add_bench_parser(commands)
    scale_cli.add_scale_parser(commands)
    show = commands.add_parser("show", help="print a run", description="Print the table of a run, finished or not.")
    show.add_argument("run", metavar="RUN", help="run directory")
    plot = commands.add_parser("plot", help="draw runs", description="Draw loss, accuracy, radius and rho of one or more runs.")
    plot.add_argument("runs", metavar="RUN", nargs="+", help="run directory")
    plot.add_argument("--out", metavar="FILE", help="picture to write, PNG, PDF or SVG (default: plot.png in the first run)")
    return parser


def parse(arguments: Sequence[str]) -> Command:
    """What ``arguments`` ask for; UsageError or SettingsError if they cannot be followed."""
    options: list[tuple[str, str | None]] = []
    words: list[str] = []
    if arguments[:1] == ["train"]:
        arguments, options = split_options(arguments, ("resume",))
    elif arguments[:1] == ["tune"]:
        arguments, options = split_options(arguments, tune_cli.OPTIONS)
    elif arguments[:1] == ["job"]:
        arguments, words = job_cli.split_train(arguments)
    elif bench_cli.takes_settings(arguments):
        arguments, words = bench_cli.split_settings(arguments)
        options = split_options(words)[1]
    args = _parser().parse_args(arguments)
    if args.command == "train":
        read = partial(read_settings, args.file, options, args.resume)
        return Command(partial(print_config, read())) if args.print_config else Command(partial(train, read), True, UNKEPT)
    if args.command == "tune":
        return Command(partial(tune, args, tune_cli.reader(args, partial(read_settings, args.file, options))), True, tune_cli.INTERRUPTED)
    if args.command == "data":
        return Command(partial(data_cli.run_data, args), parallel=data_cli.is_parallel(args))
    if args.command == "job":
        return Command(lambda comm: job_cli.run_job(args, words, partial(job_config, words)))
    if args.command == "bench":
        return Command(partial(bench, args, partial(read_settings, None, options)), True, UNKEPT)
    if args.command == "scale":
        return Command(lambda comm: scale_cli.run_scale(args))
    return Command(partial(show, args.run)) if args.command == "show" else Command(partial(plot, args.runs, args.out))


def refuse(error: Exception) -> Command:
    """A command that does nothing but end all ranks together with one message and the code for wrong usage."""

    def run(comm: Communicator | None) -> int:
        if comm is None or comm.rank == 0:
            complain(str(error))
        return USAGE

    return Command(run, parallel=True)


def job_config(words: Sequence[str]) -> Config:
    """What arguments of train mean in a job, whose environment is not this one's; UsageError or SettingsError if they are wrong."""
    kept, options = split_options(words, ("resume",))
    kept = [word for word in kept if not word.startswith("--resume=")]  # the settings of that run are read in the job
    flags = [word for word in kept if word.startswith("-") or word == "train"]
    if flags or len(kept) > 1:
        raise UsageError(f"behind -- stand [FILE.toml] [--section.key VALUE ...], got {' '.join(flags or kept)}")
    return settings.resolve(*map(settings.from_file, kept), settings.from_options(options)).config


def print_config(found: settings.Settings, comm: Communicator | None) -> int:
    """Print every setting and its source as a TOML file."""
    say("# Every value stands here, so a preset named beside this file changes nothing but its name.")
    say(settings.to_toml(found.config, found.sources), end="")
    return 0


def shared_config(read: Callable[[], settings.Settings], comm: Communicator) -> Config | None:
    """Rank 0's config on every rank, which compare its hash; None, and rank 0 says why, if it is wrong. Every rank calls."""
    verdict = ""
    if comm.rank == 0:
        try:
            found = read()
            for words in unread(found):
                say(f"note: {words}", "yellow", sys.stderr)
            verdict = settings.to_json(found.config)
        except settings.SettingsError as error:
            complain(str(error))
    verdict = comm.share(verdict)
    if not verdict:
        return None
    config = settings.from_json(verdict)
    comm.agree("settings", settings.digest(config))
    return config


def train(read: Callable[[], settings.Settings], comm: Communicator | None) -> int:
    """Train; every rank calls."""
    assert comm is not None
    config = shared_config(read, comm)
    if config is None:
        return USAGE
    from apts_mpi.train import run_training

    return run_training(config, comm).exit_code


def bench(args: argparse.Namespace, read: Callable[[], settings.Settings], comm: Communicator | None) -> int:
    """Measure; every rank calls."""
    assert comm is not None
    return bench_cli.run_bench(args, lambda: shared_config(read, comm), comm)


def tune(args: argparse.Namespace, read: Callable[[], settings.Settings], comm: Communicator | None) -> int:
    """Look for a learning rate; every rank calls."""
    assert comm is not None
    config = shared_config(read, comm)
    return USAGE if config is None else tune_cli.run_tune(args, config, comm, say)


def show(run: str, comm: Communicator | None) -> int:
    """Print a run."""
    from apts_mpi.study.show import show_run

    return _looking(lambda: show_run(run))


def plot(runs: Sequence[str], out: str | None, comm: Communicator | None) -> int:
    """Draw runs into a picture and print its path."""
    from apts_mpi.study.show import plot_runs

    return _looking(lambda: say(str(plot_runs(runs, out))))


def _looking(look: Callable[[], None]) -> int:
    """Look at run directories: 2 if one is missing or damaged, 4 if the disk or a package fails."""
    try:
        look()
    except BrokenPipeError:  # the reader has seen enough; ``__main__`` knows
        raise
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        complain(str(error))
        return USAGE
    except (OSError, ImportError) as error:
        complain(str(error))
        return ENVIRONMENT
    return 0
