"""Go on where a run was left: find its last checkpoint, compare, hand its state to all ranks."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, get_type_hints

import torch

from apts_mpi import rundir, settings
from apts_mpi.assembly import Problem
from apts_mpi.config import Config
from apts_mpi.contracts import Communicator, State, Status, StepInfo
from apts_mpi.identity import binds, completed, knows
from apts_mpi.origin import PROGRAM, SETTINGS, go_on
from apts_mpi.outcome import Progress
from apts_mpi.parallel.handshake import SetupError, together
from apts_mpi.partition import block
from apts_mpi.solver.build import Resumable, Stepper
from apts_mpi.spread import spread
from apts_mpi.storage.checkpoint import Checkpoint, newest

SILENT = ("run.resume", "run.dir", "run.allow_changes")  # how, not what
AFRESH = "to start afresh: --run.dir with that folder and --run.resume never, no --resume (what is there goes into a subfolder)"


@dataclass(frozen=True)
class Found:
    """What is gone on from; the same on all ranks but for the checkpoint, which rank 0 alone holds."""

    folder: str
    facts: dict[str, Any]
    notes: tuple[str, ...]  # for people
    complete: bool  # has the run come to an end once
    asked: int  # solver.subdomains as the settings have it, before ``adopt``
    checkpoint: Checkpoint | None = field(default=None, repr=False)
    damaged: tuple[int, ...] = ()  # newer checkpoints that were passed over; rank 0 alone knows

    @property
    def iteration(self) -> int:
        """Outer iterations that are done."""
        return int(self.facts["iteration"])


def find(config: Config, comm: Communicator) -> Found | None:
    """The checkpoint that ``run.resume`` asks for, None to start from the beginning; every rank calls.

    SetupError on every rank if there should be one and none is whole, or if it belongs to other settings.
    """
    if config.run.resume == "never":
        return None
    looked = together(comm, lambda: _look(config) if comm.rank == 0 else None)
    told = comm.share(json.dumps([looked.folder, looked.facts, looked.notes, looked.complete]) if looked else "")
    if not told:
        return None
    folder, facts, notes, complete = json.loads(told)
    found = Found(folder, facts, tuple(notes), complete, config.solver.subdomains)
    return replace(found, checkpoint=looked.checkpoint, damaged=looked.damaged) if looked else found


def adopt(config: Config, found: Found | None, ranks: int) -> Config:
    """``config`` with the run's number of subdomains, where nothing else was asked for; SetupError if these ranks cannot carry them."""
    count = found.facts["subdomains"] if found else -1
    if found is None or config.solver.subdomains not in (0, count):
        return config
    if ranks > count:
        told = f"take at most {count} ranks, or --solver.subdomains {ranks} --run.allow_changes true: another trajectory"
        raise SetupError(f"{found.folder}: {ranks} ranks cannot share the {count} subdomains of its checkpoint; {told}", usage=True)
    return replace(config, solver=replace(config.solver, subdomains=count))


def _look(config: Config) -> Found | None:
    """Rank 0: the newest checkpoint in run.dir that is whole, compared with ``config``."""
    if not config.run.dir:
        raise ValueError(f"run.resume = {config.run.resume} needs run.dir, the folder of the run to go on with")
    folder = Path(config.run.dir)
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"run.dir {folder} is a file; give the folder of a run, or a new one")
    checkpoint, problems = newest(folder / rundir.CHECKPOINTS)
    if checkpoint is None:
        _check_nothing(config, folder, problems)
        return None
    notes = [f"passed over a damaged checkpoint: {problem}" for problem in problems.values()]
    if problems:
        notes.append(f"going on from the newest one that is whole, after iteration {checkpoint.facts['iteration']}")
    notes += _compare(config, checkpoint, folder)
    complete = rundir.completed(folder)
    done, kept = rundir.read_run(folder).completion if complete else None, checkpoint.facts["iteration"]
    if done is not None and kept < done.iterations and not config.run.allow_changes:
        told = f"is finished after iteration {done.iterations}, its newest whole checkpoint is of iteration {kept}"
        raise ValueError(f"the run in {folder} {told}: --run.allow_changes true makes the iterations between them again; {AFRESH}")
    return Found(str(folder), checkpoint.facts, tuple(notes), complete, config.solver.subdomains, checkpoint, tuple(problems))


def _check_nothing(config: Config, folder: Path, problems: Mapping[int, str]) -> None:
    """No checkpoint is whole: an error, unless there was none and ``auto`` may begin."""
    if problems:
        listed = "\n".join(f"  {problem}" for problem in problems.values())
        raise OSError(f"no checkpoint of {folder} is whole:\n{listed}\n{AFRESH}")
    if config.run.resume == "must":
        raise ValueError(f"{folder / rundir.CHECKPOINTS} holds no checkpoint to go on from; {AFRESH}")
    if (folder / rundir.COMPLETION).exists():
        raise ValueError(f"the run in {folder} is finished and kept no checkpoint to go on from; {AFRESH}")


def _compare(config: Config, checkpoint: Checkpoint, folder: Path) -> list[str]:
    """Notes about settings that changed; ValueError if they bend the trajectory and may not."""
    now, then = settings.values(config), checkpoint.facts.get("settings")
    if type(then) is not dict:
        raise ValueError(f"{folder}: its checkpoint says nothing of the settings; {AFRESH}")
    then = completed(then)
    now["solver.subdomains"] = now["solver.subdomains"] or checkpoint.facts["subdomains"]
    then["solver.subdomains"] = checkpoint.facts["subdomains"]
    now = {name: list(value) if isinstance(value, tuple) else value for name, value in now.items()}
    names = [name for name in [*now, *(name for name in then if name not in now)] if now.get(name) != _plain(then.get(name))]
    lines = {name: f"{name}: {then.get(name)!r} -> {now.get(name)!r}" for name in names if name not in SILENT}
    bound = [lines[name] for name in lines if binds(name, config)]
    if bound and not config.run.allow_changes:
        listed = "\n".join(f"  {line}" for line in bound)
        fixed = any(name == "method" or name.startswith("model.") for name in lines if binds(name, config))
        told = "set them back" if fixed else "set them back, or --run.allow_changes true: another trajectory than that of an unbroken run"
        raise ValueError(f"the run in {folder} has other settings:\n{listed}\n{told}; {AFRESH}")
    return [f"changed: {line}" for name, line in lines.items() if name not in now or knows(config, name)]


def _plain(value: Any) -> Any:
    """A setting as JSON gives it back, where inf is a text and a tuple a list."""
    return float(value) if value in ("inf", "-inf") else list(value) if isinstance(value, tuple) else value


def facts_of(config: Config, problem: Problem, progress: Progress, arithmetic: str) -> dict[str, Any]:
    """What a checkpoint says of its run, as JSON; rank 0 calls."""
    finite = {name: str(value) if value in (math.inf, -math.inf) else value for name, value in settings.values(config).items()}
    return {
        "iteration": len(progress.steps), "subdomains": problem.subdomains, "settings": finite, "origin": _origin(problem),
        "layout": sha256(problem.flat.layout.encode()).hexdigest(), "data": problem.data.fingerprint, "arithmetic": arithmetic,
        "accuracy": None if math.isnan(progress.accuracy) else progress.accuracy, "messages": progress.messages,
        "bytes": progress.bytes, "seconds": progress.seconds,
    }  # fmt: skip


def _origin(problem: Problem) -> str:
    return PROGRAM if problem.data.in_memory else SETTINGS


def fitting(found: Found, config: Config, comm: Communicator, problem: Problem, arithmetic: str) -> Found:
    """``found`` with notes about what differs; SetupError on every rank if it is not, or may not be, of this problem. Every rank calls."""
    notes = together(comm, lambda: _differences(found, config, problem, arithmetic, comm.size))
    return replace(found, notes=(*found.notes, *notes))


def _differences(found: Found, config: Config, problem: Problem, arithmetic: str, ranks: int) -> list[str]:
    facts, notes = found.facts, []
    layout = sha256(problem.flat.layout.encode()).hexdigest()
    unlike = facts.get("layout") != layout or (facts.get("data") != problem.data.fingerprint and not config.run.allow_changes)
    if unlike and facts.get("origin", _origin(problem)) != _origin(problem):  # older ones do not say
        whose = "apts-mpi train" if problem.data.in_memory else "a program that calls train()"
        how = go_on(found.folder, ranks, program=not problem.data.in_memory)
        raise ValueError(f"{found.folder} is a run of {whose}; go on with {how}; {AFRESH}")
    if facts.get("layout") != layout:
        raise ValueError(f"{found.folder}: its checkpoint is of another model (names, shapes or order of the parameters); {AFRESH}")
    if facts.get("data") != problem.data.fingerprint:
        if not config.run.allow_changes:
            raise ValueError(f"{found.folder}: its checkpoint is of other data; take those, or --run.allow_changes true; {AFRESH}")
        notes.append("changed: the data")
    if facts["subdomains"] != problem.subdomains:
        notes.append(f"{problem.subdomains} subdomains instead of {facts['subdomains']}: the same theta and model, but another trajectory")
    if facts.get("arithmetic") != arithmetic:
        notes.append(f"arithmetic is {arithmetic}, it was {facts.get('arithmetic')}: the last bits may differ from an unbroken run")
    return notes


def hand_over(found: Found, comm: Communicator, problem: Problem, stepper: Stepper, per_epoch: int) -> Progress:
    """Put the checkpoint's theta and state into place on every rank, and return how far the run had come; every rank calls."""
    kept = found.checkpoint
    shared = {name: torch.from_numpy(value.copy()) for name, value in kept.shared.items()} if kept else {}
    theta = {"theta": torch.from_numpy(kept.theta.copy())} if kept else {}
    problem.theta.copy_(spread(comm, theta)["theta"])
    state = State(spread(comm, shared), _own(found, comm, problem))

    if not isinstance(stepper, Resumable):
        raise SetupError(f"{type(stepper).__name__} cannot go on from a checkpoint; {AFRESH}")
    def restore() -> None:
        try:
            stepper.restore_(state)
        except (KeyError, IndexError, RuntimeError, ValueError) as error:
            raise ValueError(f"{found.folder}: its checkpoint does not fit the method ({error}); {AFRESH}") from error

    together(comm, restore)
    stepper.recall_()
    text = comm.share(kept.records.decode(errors="replace") if kept else "")
    return _progress(found.facts, text, per_epoch)


def _own(found: Found, comm: Communicator, problem: Problem) -> list[dict[str, torch.Tensor]]:
    """What this rank's subdomains keep; nothing where their number has changed. Every rank calls."""
    if found.facts["subdomains"] != problem.subdomains:
        return []
    mine, own = block(problem.subdomains, comm.size, comm.rank), []
    for index in range(problem.subdomains):
        arrays = {name: torch.from_numpy(value.copy()) for name, value in found.checkpoint.own[index].items()} if found.checkpoint else {}
        got = spread(comm, arrays)
        if index in mine:
            own.append(got)
    return own


def _progress(facts: Mapping[str, Any], records: str, per_epoch: int) -> Progress:
    """How far the run had come, from the records that the checkpoint keeps."""
    progress = Progress()
    try:
        for info in steps_of(records, per_epoch):
            progress.add(info)
    except (KeyError, TypeError, ValueError) as error:  # alike on every rank: all read the same text
        raise SetupError(f"the records in the checkpoint are not those of a run ({error}); {AFRESH}", usage=True) from error
    progress.accuracy = math.nan if facts["accuracy"] is None else float(facts["accuracy"])
    progress.messages, progress.bytes, progress.seconds = facts["messages"], facts["bytes"], facts["seconds"]
    if len(progress.steps) != facts["iteration"]:
        raise SetupError(f"the checkpoint holds records of {len(progress.steps)} iterations and says {facts['iteration']}; {AFRESH}")
    return progress


def steps_of(records: str, per_epoch: int) -> list[StepInfo]:
    """The records of the iterations, ``per_epoch`` in an epoch, from their lines in CSV."""
    columns = rundir.parse_columns(records.encode())
    kinds = {entry.name: get_type_hints(StepInfo)[entry.name] for entry in fields(StepInfo) if entry.name != "raised"}
    count = len(columns.get("iteration", ()))
    named = {name: columns["iteration" if name == "k" else name] for name in kinds} if count else {}
    rows = ({name: _cell(kinds[name], named[name][row]) for name in kinds} for row in range(count))
    return [StepInfo(**{**row, "epoch": row["k"] // per_epoch}) for row in rows]


def _cell(kind: type, value: Any) -> Any:
    """A cell of the records in the type of its field."""
    return Status(str(value)) if kind is Status else kind(value)
