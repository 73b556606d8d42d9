"""The two ways in: train any module on tensors in memory, or as configured on a data set of shards."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from apts_mpi import assembly, settings, timing, trial
from apts_mpi.assembly import Data, Problem, Values
from apts_mpi.config import Config, DataConfig, ModelConfig, RunConfig
from apts_mpi.contracts import Communicator, Wishes
from apts_mpi.loop import Loop, Maker
from apts_mpi.native import extension, kernels
from apts_mpi.network import emulated
from apts_mpi.outcome import Result
from apts_mpi.presets import PRESETS
from apts_mpi.problem.losses import Loss
from apts_mpi.problem.models import build_model
from apts_mpi.resumption import adopt, find, fitting
from apts_mpi.solver.build import Stepper, build_stepper
from apts_mpi.timing import Timers
from apts_mpi.tracing import tracer

if TYPE_CHECKING:
    from apts_mpi.parallel.comm import MpiCommunicator
    from apts_mpi.parallel.serial import SerialCommunicator
    from apts_mpi.parallel.watchdog import Watchdog

__all__ = ["Result", "run_training", "train"]


def train(
    model: nn.Module, inputs: Values, targets: Values, /, *, loss: str | Loss | None = None,
    test: tuple[Values, Values] | None = None, config: Config | None = None, comm: Communicator | None = None, **keys: Any,
) -> Result:  # fmt: skip
    """Train ``model`` in place on tensors in memory; every rank calls with the same arguments.

    Args:
        model: any module that is a deterministic function of its parameters; it ends up with the trained ones.
        inputs, targets: (samples, ...), tensors or arrays; integer targets are class labels. Every rank keeps its share alone.
        loss: a name, a torch loss module, or a callable of (outputs, targets); default: ``model.loss`` of the settings, cross_entropy.
        test: (inputs, targets) to measure the accuracy on.
        config: settings; or give ``preset="lsr1"`` and sections as keywords: ``stop={"epochs": 4}``.
        comm: the ranks; default: those that mpiexec or srun started, or this process alone.
    Nothing is written to disk unless ``run.dir`` is set. Raises ValueError for wrong settings; for data or a model that cannot be
    trained, and for ranks that differ, ``parallel.handshake.HandshakeError`` on every rank, after which the program may go on.
    """
    if config is None:
        config = settings.resolve(settings.from_tree(keys, "train()")).config
    elif keys:
        raise ValueError(f"give either config or single keys, got both ({', '.join(keys)})")
    _check_label(config)
    plain = DataConfig(batch=config.data.batch, overlap=config.data.overlap, place=config.data.place)
    if config.data != plain:
        raise ValueError("data.path, data.limit and data.normalize are for data sets on disk: tensors are taken as they are")
    if {"name", "widths"} & {*keys.get("model", ())}:
        raise ValueError("model.name and model.widths are for networks that are made by their name: the module is taken as it is")
    if loss is not None and config.model.loss not in (ModelConfig().loss, loss):
        raise ValueError(f"the loss is given twice: loss = {loss!r} and model.loss = {config.model.loss!r}")
    chosen = config.model.loss if loss is None else loss
    from apts_mpi.parallel import launch
    from apts_mpi.parallel.handshake import HandshakeError

    def run(comm: Communicator) -> Result:
        return _run(
            config, comm, lambda: assembly.from_tensors(inputs, targets, test, model), lambda data: model, chosen, bool(config.run.dir)
        )

    if comm is not None:
        return run(comm)
    launch.resume()
    own = _own_ranks()
    try:
        result = run(own)
    except HandshakeError:  # raised on every rank, so that all may go on, or leave
        launch.release(own)
        raise
    launch.release(own)
    return result


def _check_label(config: Config) -> None:
    """ValueError if ``config`` bears the name of a preset and has none of its values: ``Config(preset=...)`` sets the name alone."""
    found, defaults = settings.values(config), settings.values(Config())
    special = {f"{section}.{name}": value for section, part in PRESETS[config.preset].items() for name, value in part.items()}
    if special and all(found[name] == defaults[name] for name in special):
        raise ValueError(f"config is named preset {config.preset}, but has the default's values; make it with preset({config.preset!r})")


def configured(config: Config, problem: Problem, comm: Communicator, timers: Timers, wishes: Wishes) -> Stepper:
    """The method that ``method`` names; every rank calls."""
    return build_stepper(config, problem.theta, problem.objective, comm, timers, problem.subdomains, wishes)


def run_training(
    config: Config, comm: Communicator, make_stepper: Maker = configured, facts: Mapping[str, str] = MappingProxyType({})
) -> Result:
    """Train as configured, on a data set of shards, and leave a run directory; every rank calls.

    Args:
        make_stepper: builds what takes the steps, a ``solver.build.Stepper``, on this rank's share of the problem; every rank calls it.
            All must find the same status. A program that brings its own counts what it sends in the ``comm`` that it gave.
        facts: what such a program says of itself, for the header and ``provenance.json``.
    """

    def load() -> Data:
        from apts_mpi.storage.shards import open_dataset

        dataset = open_dataset(config.data.path)
        test = dataset.split("test") if dataset.manifest.of("test") else None
        wanted = config.data
        return assembly.from_shards(dataset.split("train"), test, wanted.normalize, wanted.limit, dataset.fingerprint, wanted.path)

    def module(data: Data) -> nn.Module:
        return build_model(config.model, data.sample_shape, data.outputs, config.run.seed)

    return _run(config, comm, load, module, config.model.loss, True, make_stepper, facts)


def _run(
    config: Config, comm: Communicator, load: Callable[[], Data], module: Callable[[Data], nn.Module], loss: str | Loss, write: bool,
    make_stepper: Maker = configured, facts: Mapping[str, str] = MappingProxyType({}),
) -> Result:  # fmt: skip
    """As ``_watched``, with a watchdog; every rank calls."""
    from apts_mpi.parallel.watchdog import watching

    comm.agree("settings", settings.digest(config))  # first of all: what follows communicates as configured
    with watching(comm, config.safety) as watchdog:
        return _watched(watchdog, config, comm, load, module, loss, write, make_stepper, facts)


def _watched(
    watchdog: Watchdog, config: Config, comm: Communicator, load: Callable[[], Data], module: Callable[[Data], nn.Module], loss: str | Loss,
    write: bool, make_stepper: Maker, facts: Mapping[str, str],
) -> Result:  # fmt: skip
    """Set up, agree, loop, finish; every rank calls."""
    from apts_mpi.parallel.devices import choose_device, set_threads, sharers
    from apts_mpi.parallel.handshake import handshake, together
    from apts_mpi.parallel.transport import choose_transport

    together(comm, extension.extension)
    device = choose_device(config.run.device, comm, config.run.share_gpu)
    sharing = sharers(device, comm) if device.type == "cuda" else 1
    transport, note = choose_transport(config.comm.transport, comm, device, config.run.share_gpu)
    comm.configure(config.comm.reduction, config.comm.count_limit, transport)
    threads = set_threads(config.run.threads, comm)
    if device.type == "cuda":
        _prepare_gpu(config.run)
    timers = Timers(torch.cuda.synchronize if device.type == "cuda" else None, tracer=tracer(device.type == "cuda"))
    watchdog.progress = timers.entered
    comm = instrumented(comm, config, timers)
    found = find(config, comm)
    config = adopt(config, found, comm.size)
    data = together(comm, load)
    problem = together(comm, lambda: assembly.build(data, module(data), loss, config, comm, device, sharing))
    watchdog.progress = lambda: timers.entered() + problem.flat.forward.passes  # a local solve is one region, and may be long
    arithmetic = together(comm, lambda: _arithmetic(device, threads, transport))
    model = {"layout of the parameters": problem.flat.layout, "frozen parameters and buffers": problem.flat.fixed}
    handshake(comm, {**model, "data": data.fingerprint, "arithmetic": arithmetic})
    if found is not None:
        found = fitting(found, config, comm, problem, arithmetic)
    comm.broadcast_(problem.theta)
    timers.phase(timing.WARM_UP)
    together(comm, lambda: trial.check_model(problem))
    notes = [*trial.notes(problem, config, comm, threads), *([note] if note else [])]
    if refused := kernels.refused(device):
        notes.append(f"torch twins serve on the GPU, which refuses the compiled kernels: {refused}")
    facts = {**facts, **({"note": "; ".join(notes)} if notes else {})}
    comm.barrier()  # all ranks measure their peak at the same time, as they will compute
    flops = together(comm, lambda: assembly.measure(problem, config.run.peak))
    problem.arithmetic = replace(flops, peak=sum(row[0] for row in comm.gather([flops.peak])) / comm.size)
    watchdog.phase("run")
    return Loop(config, comm, problem, timers, threads, write, make_stepper, facts, found, arithmetic).run()


def _arithmetic(device: torch.device, threads: int, transport: str) -> str:
    """What the last bits depend on. Each rank computes the global step for itself: with other arithmetic it would end elsewhere."""
    words = [device.type, f"{threads} threads", torch.backends.cpu.get_cpu_capability()]
    if device.type == "cuda":
        gpu = torch.cuda.get_device_properties(device)  # not its name: those with more memory compute the same
        words.append(f"compute capability {gpu.major}.{gpu.minor}, {gpu.multi_processor_count} multiprocessors")
    words += [f"kernels {extension.state()}"] if extension.extension() is not None else []
    words += ["torch twins on the GPU"] if kernels.refused(device) else []
    words += [f"sums by {transport}"] if transport != "host" else []
    return ", ".join(words)


def instrumented(comm: Communicator, config: Config, timers: Timers) -> Communicator:
    """``comm`` as the settings want it checked, measured and slowed down."""
    from apts_mpi.parallel.checked import CheckedCommunicator
    from apts_mpi.parallel.emulate import EmulatedCommunicator
    from apts_mpi.parallel.wrapper import WaitingCommunicator

    network = emulated(config.comm, comm.size)
    comm = CheckedCommunicator(comm) if config.safety.checksum and comm.size > 1 else comm
    comm = EmulatedCommunicator(comm, network) if network else comm
    return WaitingCommunicator(comm, timers) if config.run.measure_wait else comm


def _prepare_gpu(run: RunConfig) -> None:
    """Before the first operation on the device: float32 that means it, since rho compares nearly equal losses; and the same bits again."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False  # but for the network's products, if it is told so
    if run.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else cuBLAS may differ from run to run
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a launch for each new tensor


@functools.cache
def _own_ranks() -> MpiCommunicator | SerialCommunicator:
    """The ranks of this process's launcher, or this process alone; started once."""
    from apts_mpi.parallel import launch

    return launch.start()
