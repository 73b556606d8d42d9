"""The run directory a run writes into, new or gone on with, and what the header says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from apts_mpi import provenance, settings
from apts_mpi.assembly import Problem
from apts_mpi.config import Config
from apts_mpi.contracts import Communicator
from apts_mpi.monitor.lines import LOCAL, TEST, TRIALS
from apts_mpi.network import emulated
from apts_mpi.origin import GIVEN, of_program
from apts_mpi.parallel.handshake import together
from apts_mpi.resumption import Found
from apts_mpi.rundir import CHECKPOINTS, is_run

if TYPE_CHECKING:
    from apts_mpi.storage.records import RunDirectory


def meaningless(config: Config, scored: bool) -> Sequence[str]:
    """Columns of the log that say nothing about such a run; ``scored``: its test set has class labels."""
    trials = () if config.method in ("apts", "trust-region") else TRIALS
    local = () if config.method in ("apts", "local-sgd") else (LOCAL,)
    return [*trials, *local, *(() if scored else (TEST,))]


def described(config: Config) -> str:
    """The method and its main settings, for people."""
    b = config.baseline
    if config.method == "apts":
        local = f"local {config.local.solver}, {config.solver.combine} of the steps"
        return f"preset {config.preset}: {local}, global {config.global_step.solver}"
    if config.method == "trust-region":
        return f"trust-region: global {config.global_step.solver} alone"
    detail = {"sgd": f", momentum {b.momentum:g}", "local-sgd": f", momentum {b.momentum:g}, H = {b.period}"}.get(config.method, "")
    return f"{config.method}: lr {b.lr:g} {b.schedule}{detail}{', overlapped' if b.overlap else ''}"


def header(config: Config, problem: Problem, ranks: int, threads: int, place: str, facts: Mapping[str, str]) -> dict[str, object]:
    """Facts about a run for the first lines of its output; ``place``: where it is stored."""
    about = "about " if problem.objective.batches > 1 else ""
    share = f"{about}{problem.objective.batch_samples:,} of {problem.samples:,} samples per outer iteration"
    name = type(problem.flat.module).__name__ if problem.data.in_memory else config.model.name
    known: dict[str, object] = {
        "data": f"{problem.data.name}, {share}", "model": f"{name}, n = {problem.theta.numel():,}, {config.model.dtype}",
        "method": described(config), "subdomains": f"N = {problem.subdomains} on P = {ranks} ranks",
        "device": f"{problem.theta.device}, {threads} thread{'s' * (threads > 1)} per rank", "run": place,
    }  # fmt: skip
    network = emulated(config.comm, ranks)
    return {**known, **facts, **({"network": str(network)} if network else {})}


def provenance_of(
    config: Config, comm: Communicator, problem: Problem, threads: int, hosts: Sequence[str], devices: Sequence[str]
) -> dict[str, object]:
    """Where a run comes from, for ``provenance.json``; reads every source file and asks git, so rank 0 alone calls."""
    return provenance.collect(
        config_sha256=settings.digest(config), seed=config.run.seed, data=problem.data.fingerprint, mpi_library=comm.library,
        hosts=hosts, threads=threads, devices=devices, n_params=problem.theta.numel(), subdomains=problem.subdomains,
    ) | {
        "emulated_network": str(emulated(config.comm, comm.size) or ""), "flops_per_gradient": problem.arithmetic.gradient,
        "flops_per_value": problem.arithmetic.value, "peak_flops": problem.arithmetic.peak,
        **(of_program(type(problem.flat.module).__name__) if problem.data.in_memory else {}),
    }  # fmt: skip


def open_directory(
    config: Config, comm: Communicator, problem: Problem, threads: int, facts: Mapping[str, str], found: Found | None,
    warn: Callable[[str], None],
) -> RunDirectory | None:  # fmt: skip
    """Rank 0's run directory, a new one or that of ``found``; every rank calls. SetupError on all if it cannot be had."""
    from apts_mpi.storage.checkpoint import sequences, set_aside
    from apts_mpi.storage.records import RunDirectory

    hosts, devices = comm.gather_text(comm.host), comm.gather_text(str(problem.theta.device))
    # What was asked for, not how it went on: neither the way of resuming nor the number of subdomains that was taken over.
    asked = replace(config.solver, subdomains=found.asked) if found else config.solver
    asked_for = replace(config, solver=asked, run=replace(config.run, resume="never", allow_changes=False))
    text = settings.to_toml(asked_for, dict.fromkeys(GIVEN, "the program decides by its call") if problem.data.in_memory else None)

    def make() -> RunDirectory | None:
        if comm.rank != 0:
            return None
        known = {**provenance_of(config, comm, problem, threads, hosts, devices), **facts}
        if found is None:
            if config.run.dir and is_run(Path(config.run.dir)):
                why = "no checkpoint was kept there, " if config.run.resume == "auto" else ""
                words = f"{config.run.dir} holds an earlier run: {why}this one begins anew, that one goes into a subfolder earlier-<i>"
                warn(words if why else f"{words}; --resume {config.run.dir} would have gone on with it")
            return RunDirectory.create(config.run.dir, config.run.name, text, known, warn)
        assert found.checkpoint is not None
        newest, folder = max((found.checkpoint.sequence, *found.damaged)), Path(found.folder) / CHECKPOINTS

        def claimed() -> None:
            if sequences(folder)[:1] != [newest]:
                raise OSError(f"{folder}: another process has written there since this one looked; start again when it has ended")
            set_aside(folder, found.damaged)

        told = {**known, "resumed_after_iteration": found.iteration, "resumed_from": found.checkpoint.sequence, "notes": list(found.notes)}
        return RunDirectory.resume(found.folder, found.checkpoint.records, text, told, True, warn, claimed)

    return together(comm, make)
