"""``apts-mpi bench reduce | step | compute | io``: options in, JSON and exit code out; started under mpiexec like train."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from apts_mpi.bench.measure import Plan
    from apts_mpi.config import Config
    from apts_mpi.contracts import Communicator

USAGE, ENVIRONMENT = 2, 4
SHAPES = {"mnist": (1, 28, 28), "cifar10": (3, 32, 32)}
TOP = ("preset", "method")  # settings without a dot
CONFIGURED = ("step", "compute")  # actions that take settings of train
_STEP, _COMPUTE = (f"apts-mpi bench {name} [OPTIONS] [--preset NAME] [--method NAME] [--section.key VALUE ...]" for name in CONFIGURED)


def add_bench_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the ``bench`` command and its four sub-commands."""
    what = "measure parts against what they stand on"
    bench = commands.add_parser("bench", help=what, description="Benchmarks, interleaved with their base; under mpiexec like train.")
    actions = bench.add_subparsers(dest="action", metavar="ACTION", required=True)
    reduce = actions.add_parser("reduce", help="our sums against MPI_Allreduce", description="A planned message against MPI_Allreduce.")
    reduce.add_argument("--max-bytes", type=int, default=2**24, metavar="B", help="longest buffer (default: %(default)s)")
    what = "cuda: also the ways in which a vector leaves a GPU (default: %(default)s)"
    reduce.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help=what)
    reduce.add_argument("--share-gpu", action="store_true", help="allow two ranks on one GPU")
    step = actions.add_parser(
        "step", help="an outer iteration against its floor", usage=_STEP, description="Settings are those of train; the data are random."
    )
    step.add_argument("--samples", type=int, default=2000, metavar="B", help="per rank and minibatch (default: %(default)s)")
    compute = actions.add_parser(
        "compute", help="constants of the cost model", usage=_COMPUTE,
        description="Seconds of gradients, vector passes, quasi-Newton and optimizer steps, and messages, all ranks at work.",
    )  # fmt: skip
    for parser in (step, compute):
        what = "of a sample: mnist, cifar10 or sizes such as 1,8,8 (default: %(default)s)"
        parser.add_argument("--shape", type=_shape, default="mnist", help=what)
    compute.add_argument("--outputs", type=int, default=10, metavar="C", help="classes (default: %(default)s)")
    io = actions.add_parser("io", help="reading shards against dd", description="Reading shards against reading the same bytes.")
    io.add_argument("path", metavar="PATH", help="folder with manifest.json")
    io.add_argument("--cold", action="store_true", help="drop the files from the page cache before each reading")
    for parser in (reduce, step, compute, io):
        parser.add_argument("--repeats", type=int, default=20, metavar="N", help="measured pairs, at least 15 (default: %(default)s)")
        parser.add_argument("--threads", type=int, default=1, metavar="T", help="torch threads per rank (default: %(default)s)")
        parser.add_argument("--oversubscribe", action="store_true", help="allow more threads than cores, and mark the result")
        parser.add_argument("--out", metavar="FILE", help="JSON to write (default: bench-ACTION.json)")


def _shape(text: str) -> tuple[int, ...]:
    """The shape of a sample, by name or by its sizes."""
    found = SHAPES.get(text) or tuple(int(size) for size in text.split(","))
    if min(found) < 1:
        raise ValueError(f"sizes must be positive, got {text}")
    return found


def split_settings(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The bench's own arguments, and those that are settings of train: dotted ones, ``--preset`` and ``--method``."""
    own, given, rest = list[str](), list[str](), list(arguments)
    while rest:
        word = rest.pop(0)
        name, equals, _ = word.removeprefix("--").partition("=")
        if not word.startswith("--") or ("." not in name and name not in TOP):
            own.append(word)
            continue
        given.append(word)
        if not equals and rest and not rest[0].startswith("--"):
            given.append(rest.pop(0))
    return own, given


def takes_settings(arguments: Sequence[str]) -> bool:
    """Whether the command line is that of a benchmark with settings of train."""
    return list(arguments[:1]) == ["bench"] and any(word in CONFIGURED for word in arguments[1:2])


def run_bench(args: argparse.Namespace, config: Callable[[], Config | None], comm: Communicator | None) -> int:
    """Measure what ``add_bench_parser`` parsed; ``config`` gives the settings of ``step`` and ``compute``. Every rank calls."""
    assert comm is not None
    settings = config() if args.action in CONFIGURED else None
    if args.action in CONFIGURED and settings is None:
        return USAGE  # said already
    try:
        content, lines = _measured(args, settings, comm)
    except ValueError as error:  # the same on every rank: options, data set and cores are
        if comm.rank == 0:
            print(f"apts-mpi bench: {error}", file=sys.stderr, flush=True)
        return USAGE
    return _deliver(Path(args.out or f"bench-{args.action}.json"), content, lines) if comm.rank == 0 else 0


def _deliver(path: Path, content: dict[str, Any], lines: Sequence[str]) -> int:
    from apts_mpi.bench.report import write

    print("\n".join(lines), flush=True)
    try:
        write(path, content)
    except OSError as error:
        print(f"apts-mpi bench: cannot write {path}: {error.strerror}", file=sys.stderr, flush=True)
        return ENVIRONMENT
    print(f"written to {path}", flush=True)
    return 0


def _measured(args: argparse.Namespace, settings: Config | None, comm: Communicator) -> tuple[dict[str, Any], list[str]]:
    """The document and the lines for people; ValueError on every rank."""
    import torch

    from apts_mpi.bench.measure import Plan
    from apts_mpi.bench.report import document, oversubscribed

    plan = Plan(args.repeats)
    crowded = oversubscribed(comm, args.threads, args.oversubscribe)
    torch.set_num_threads(args.threads)
    measure = {"reduce": _reduce, "step": _step, "compute": _compute, "io": _io}[args.action]
    found, lines = measure(args, settings, comm, plan)
    options = {key: value for key, value in vars(args).items() if key not in ("command", "action", "out")}
    if crowded:
        lines.append("more threads than cores: these times say nothing about speed")
    return document(comm, args.action, options, plan, args.threads, crowded, found), lines


Found = tuple[dict[str, Any], list[str]]


def _reduce(args: argparse.Namespace, settings: Config | None, comm: Communicator, plan: Plan) -> Found:
    from apts_mpi.bench import measure, reduce, transports
    from apts_mpi.parallel.devices import choose_device

    device = choose_device(args.device, comm, args.share_gpu)
    found = reduce.measure(comm, args.max_bytes, plan)
    fit = found["fit"]
    lines = [measure.heading("a sum of", "MPI_Allreduce")]
    lines += [measure.line(f"{entry['bytes']} bytes", entry) for entry in found["results"]]
    rate = f"{fit['bandwidth_bytes_per_s'] / 1e9:.3g} GB/s" if fit["bandwidth_bytes_per_s"] else "bytes cost nothing"
    errors = f"off by {100 * fit['error_median']:.0f} % (median), {100 * fit['error_max']:.0f} % (most)"
    lines.append(f"fit of MPI: {fit['latency_s'] * 1e6:.3g} us, {rate}, {errors}")
    if device.type == "cpu":
        return found, lines
    names, missing = transports.offered(comm, device, args.share_gpu)
    ways = transports.measure(comm, device, reduce.sizes(args.max_bytes), names, plan) | {"missing": missing}
    return {**found, "transports": ways}, lines + transports.lines(ways)


def _step(args: argparse.Namespace, settings: Config | None, comm: Communicator, plan: Plan) -> Found:
    from apts_mpi import settings as keys
    from apts_mpi.bench import measure, step
    from apts_mpi.network import emulated

    assert settings is not None
    found = step.measure(comm, settings, args.shape, args.samples, plan)
    network = str(emulated(settings.comm, comm.size) or "")
    lines = [*found.pop("table"), measure.line(f"n = {found['n_params']}", found), *([network] if network else [])]
    return {**found, "settings": keys.to_toml(settings), "emulated_network": network}, lines


def _compute(args: argparse.Namespace, settings: Config | None, comm: Communicator, plan: Plan) -> Found:
    from apts_mpi import settings as keys
    from apts_mpi.bench import compute

    assert settings is not None
    found = compute.measure(comm, settings, args.shape, plan, args.outputs)
    return {**found, "settings": keys.to_toml(settings)}, compute.lines(found)


def _io(args: argparse.Namespace, settings: Config | None, comm: Communicator, plan: Plan) -> Found:
    from apts_mpi.bench import io, measure

    found = io.measure(comm, args.path, plan, args.cold)
    rates = ", ".join(f"{name} {found[f'{key}_bytes_per_s'] / 1e9:.3g} GB/s" for name, key in (("shards", "ours"), ("dd", "base")))
    return found, [measure.line(f"{found['bytes']} bytes, {found['cache']}", found), rates]
