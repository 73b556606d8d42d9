"""``apts-mpi data convert | fetch | info | verify``: options in, exit code out; h5py is imported only to do the work.

Exit codes: 0 done, 2 wrong usage or bad data, 4 the environment (disk, network, a missing package).
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from apts_mpi.interrupt import INTERRUPTED

if TYPE_CHECKING:
    from apts_mpi.contracts import Communicator

USAGE, ENVIRONMENT = 2, 4
_KINDS = {
    "mnist": "a folder with the four IDX files, .gz or not (also Fashion-MNIST)",
    "cifar10": "the folder or the .tar.gz, in its binary or its python form",
    "npz": "an .npz, or a folder of .npy files: x_train, y_train, x_test, y_test, or x and y",
    "imagefolder": "train/CLASS/FILE and test/CLASS/FILE in a folder, a tar or a zip; needs Pillow",
    "digits": "scikit-learn's 1,797 handwritten digits; needs scikit-learn, no download",
    "text": "a UTF-8 text file, for a character model",
    "poisson": "Poisson's equation with a known answer, made here in float64",
}
_MADE = ("digits", "poisson")  # they need no SOURCE
_LAYOUT = "DEST/train-00000-of-0000K.h5 ..., DEST/test-..., and DEST/manifest.json, which is written last. An interrupted run goes on."


def add_data_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the ``data`` command and its four sub-commands."""
    data = commands.add_parser("data", help="prepare, fetch, inspect and check data sets", description="Data sets as HDF5 shards.")
    actions = data.add_subparsers(dest="action", metavar="ACTION", required=True)
    _add_convert(actions)
    mirrors = "Several mirrors, checksums, resumed; proxy variables are honoured."
    fetch = actions.add_parser("fetch", help="download a public data set", description=mirrors)
    fetch.add_argument("name", choices=("mnist", "fashion-mnist", "cifar10"), help="which data set")
    fetch.add_argument("dest", metavar="DEST", help="folder for the original files")
    info = actions.add_parser("info", help="describe a data set", description="Print what the manifest of a data set says.")
    info.add_argument("path", metavar="PATH", help="folder with manifest.json")
    checks = "Check every hash, count, label and value; in parallel under MPI."
    verify = actions.add_parser("verify", help="check a data set", description=checks)
    verify.add_argument("path", metavar="PATH", help="folder with manifest.json")


def _add_convert(actions: argparse._SubParsersAction[Any]) -> None:
    """``convert`` has a parser of its own for every kind, so that each shows only what it understands."""
    convert = actions.add_parser("convert", help="turn raw data into shards", description=f"Turn raw data into shards: {_LAYOUT}")
    kinds = convert.add_subparsers(dest="kind", metavar="KIND", required=True)
    for kind, meaning in _KINDS.items():
        parser = kinds.add_parser(kind, help=meaning, description=f"SOURCE: {meaning}. Result: {_LAYOUT}")
        parser.add_argument("source", metavar="SOURCE", nargs="?" if kind in _MADE else None, help=meaning)
        parser.add_argument("dest", metavar="DEST", help="folder of the new data set")
        parser.add_argument("--shards", type=int, default=1, metavar="K", help="files of the training split (default: %(default)s)")
        parser.add_argument("--seed", type=int, default=0, help="of the shuffle of the training split (default: %(default)s)")
        if kind not in ("text", "poisson"):
            parser.add_argument("--stratified", action="store_true", help="every block of samples gets the classes in equal shares")
        parser.add_argument("--dry-run", action="store_true", help="print what would be written, and end")
        parser.add_argument("--force", action="store_true", help="replace another data set in DEST")
        _add_own_options(kind, parser)


def _add_own_options(kind: str, parser: argparse.ArgumentParser) -> None:
    """The options of one kind; their names are those of ``sources.Options``."""
    if kind in ("npz", "text"):
        rest = " of the samples when there is only x and y" if kind == "npz" else " of the text, from its end"
        meaning = f"share{rest} kept for the test (default: %(default)s)"
        parser.add_argument("--test-share", type=float, default=0.1, metavar="S", help=meaning)
    if kind == "npz":
        meaning = "number of classes; 0: the largest integer label + 1, or regression for floats (default: %(default)s)"
        parser.add_argument("--classes", type=int, default=0, metavar="C", help=meaning)
        parser.add_argument("--float64", action="store_true", help="store floats with 64 bits instead of 32")
    if kind == "text":
        parser.add_argument("--window", type=int, default=64, metavar="L", help="characters in a sample (default: %(default)s)")
    if kind == "poisson":
        meaning = "points to train, and a fourth as many to test (default: %(default)s)"
        parser.add_argument("--points", type=int, default=4096, metavar="K", help=meaning)
        parser.add_argument("--answer", action="store_true", help="targets are u for a plain fit, not f = -Laplace u")
    if kind == "imagefolder":
        parser.add_argument("--image-size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="resize every image")
        parser.add_argument("--gray", action="store_true", help="one channel instead of three")


def is_parallel(args: argparse.Namespace) -> bool:
    """Whether the command uses all ranks; only ``verify`` does."""
    return bool(args.action == "verify")


def run_data(args: argparse.Namespace, comm: Communicator | None = None) -> int:
    """Run what ``add_data_parser`` parsed and return the exit code; with several ranks, every rank calls."""
    run: dict[str, Callable[[], int]] = {
        "convert": lambda: _convert(args),
        "fetch": lambda: _fetch(args),
        "info": lambda: _info(args),
        "verify": lambda: _verify(args, comm),
    }
    try:
        return run[args.action]()
    except BrokenPipeError:  # the reader has seen enough; ``__main__`` knows
        raise
    except ValueError as error:
        return _complain(str(error), USAGE)
    except (OSError, ImportError) as error:
        return _complain(str(error), ENVIRONMENT)
    except KeyboardInterrupt:
        if args.action not in ("convert", "fetch"):
            raise
        return _complain("interrupted; the same command goes on where it stopped", INTERRUPTED)


def _complain(text: str, code: int) -> int:
    print(f"apts-mpi data: {text}", file=sys.stderr, flush=True)
    return code


def _convert(args: argparse.Namespace) -> int:
    from apts_mpi.storage.convert import convert
    from apts_mpi.storage.sources import Options

    names = ("test_share", "classes", "float64", "window", "points", "answer", "image_size", "gray")
    given = {name: getattr(args, name) for name in names if getattr(args, name, None) is not None}
    if "image_size" in given:
        given["image_size"] = tuple(given["image_size"])
    common = {"shards": args.shards, "seed": args.seed, "stratified": getattr(args, "stratified", False), "force": args.force}
    with _progress() as progress:
        report = convert(args.kind, args.source, args.dest, dry_run=args.dry_run, options=Options(**given), progress=progress, **common)
    print("\n".join(report.plan))
    for warning in report.warnings:
        print(f"note: {warning}", file=sys.stderr)
    if report.manifest is None:
        print(f"dry run: nothing was written to {args.dest}")
    else:
        kept = f", {len(report.kept)} kept from before" if report.kept else ""
        print(f"{args.dest}: {len(report.written)} files written{kept}; look at it with: apts-mpi data info {args.dest}")
    return 0


def _fetch(args: argparse.Namespace) -> int:
    from apts_mpi.storage.fetch import converter, fetch

    with _progress(bytes_=True) as progress:
        paths = fetch(args.name, args.dest, progress)
    print(f"{args.dest}: {len(paths)} files with the right checksum")
    print(f"next: apts-mpi data convert {converter(args.name)} {args.dest} data/{args.name} --shards 4")
    return 0


def _info(args: argparse.Namespace) -> int:
    from apts_mpi.storage.verify import info

    print("\n".join(info(args.path)))
    return 0


def _verify(args: argparse.Namespace, comm: Communicator | None) -> int:
    """Check this rank's shards, then add up; no rank leaves before the sum, whatever it found."""
    from apts_mpi.storage.verify import verify

    rank, size = (comm.rank, comm.size) if comm is not None else (0, 1)
    verdict = verify(args.path, rank, size)
    for problem in verdict.problems:
        print(f"apts-mpi data: rank {rank}: {problem}" if size > 1 else f"apts-mpi data: {problem}", file=sys.stderr, flush=True)
    mine = [float(verdict.shards), float(verdict.samples), float(verdict.bytes), float(len(verdict.problems))]
    rows = comm.gather(mine) if comm is not None else [mine]
    shards, samples, size_bytes, problems = map(sum, zip(*rows, strict=True))
    unread = sum(row[0] == 0 and row[3] > 0 for row in rows)  # ranks that found no data set
    if rank == 0 and not problems:
        print(f"{args.path}: {shards:.0f} files, {samples:.0f} samples, {size_bytes / 1e6:.1f} MB checked by {size} ranks: all is well")
    elif rank == 0 and (damaged := int(problems) - unread):
        told = f"{damaged} of {shards:.0f} files {'is' if damaged == 1 else 'are'} damaged"
        print(f"apts-mpi data: {args.path}: {told}", file=sys.stderr, flush=True)
    return USAGE if problems else 0


@contextlib.contextmanager
def _progress(bytes_: bool = False) -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar on stderr where a person watches, else nothing."""
    if not sys.stderr.isatty():
        yield lambda what, done, total: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    amount = DownloadColumn() if bytes_ else MofNCompleteColumn()
    with Progress(TextColumn("{task.description}"), BarColumn(), amount, TimeRemainingColumn(), console=Console(stderr=True)) as bars:
        tasks: dict[str, Any] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done)

        yield show
