"""The tune command: every option of train, and three of its own."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from apts_mpi import settings

if TYPE_CHECKING:
    from apts_mpi.config import Config
    from apts_mpi.contracts import Communicator

T = TypeVar("T", int, float)

USAGE = "apts-mpi tune [FILE.toml] --method NAME --lrs RATE,... [--seeds INT,...] [--by accuracy|loss|target] [--section.key VALUE ...]"
OPTIONS = ("lrs", "seeds", "by")
INTERRUPTED = "interrupted; the finished runs are kept, the same command goes on"
ABOUT = """Train once for every learning rate and seed, and name the rate that is best by the mean over the seeds.
All other options are those of train. The same command again goes on where the search stopped."""


def add_tune_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """The command's own options; ``settings`` reads the dotted ones."""
    tune = commands.add_parser("tune", help="look for a learning rate", usage=USAGE, description=ABOUT)
    tune.add_argument("file", nargs="?", metavar="FILE.toml", help="settings, as for train; method sgd, adam, adamw or local-sgd")
    tune.add_argument("--lrs", required=True, metavar="RATE,...", type=_numbers(float), help="learning rates to try")
    tune.add_argument("--seeds", default=[0], metavar="INT,...", type=_numbers(int), help="seeds of every rate [0]")
    what = "what is compared at the end of the runs; target: gradient evaluations to stop.target_accuracy [accuracy]"
    tune.add_argument("--by", default="accuracy", choices=["accuracy", "loss", "target"], help=what)


def reader(args: argparse.Namespace, read: Callable[[], settings.Settings]) -> Callable[[], settings.Settings]:
    """``read``, refusing with SettingsError what cannot be tuned."""

    def checked() -> settings.Settings:
        from apts_mpi.tune import check

        found = read()
        try:
            check(found.config)
            if args.by == "target" and not math.isfinite(found.config.stop.target_accuracy):
                raise ValueError("--by target needs --stop.target_accuracy, in per cent")
            for lr in args.lrs:
                replace(found.config.baseline, lr=lr)
        except ValueError as error:
            raise settings.SettingsError(str(error)) from None
        return found

    return checked


def run_tune(args: argparse.Namespace, config: Config, comm: Communicator, say: Callable[[str], None]) -> int:
    """Search; every rank calls."""
    from apts_mpi.tune import tune

    return tune(config, args.lrs, args.seeds, args.by, comm, say)


def _numbers(kind: type[T]) -> Callable[[str], list[T]]:
    """A reader of '1,2': each number once, in the order given."""

    def numbers(text: str) -> list[T]:
        try:
            return list(dict.fromkeys(kind(part) for part in text.split(",")))
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be numbers with commas between, such as 0.1,0.01 or 0,1000; got {text!r}") from None

    return numbers
