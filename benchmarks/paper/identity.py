"""Whether a run directory holds the run that a case means: its settings, but for those that do not make another run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from apts_mpi import settings
from apts_mpi.config import Config
from apts_mpi.rundir import CONFIG

FREE = ("stop.", "checkpoint.", "safety.", "comm.", "run.", "data.path")  # do not make another run
BOUND = ("run.seed", "run.deterministic", "run.evaluate_iterations")  # but for these


def identity(values: Mapping[str, object]) -> dict[str, object]:
    """The settings that make a run what it is."""
    return {name: value for name, value in values.items() if name in BOUND or not name.startswith(FREE)}


def asked(words: Sequence[str]) -> dict[str, object]:
    """The identity of a run with these options of train."""
    pairs = [(words[index].removeprefix("--"), words[index + 1]) for index in range(0, len(words), 2)]
    return identity(settings.values(settings.resolve(settings.from_options([*pairs, ("stop.epochs", "1")])).config))


def found(folder: Path) -> dict[str, object]:
    """The identity of the run in ``folder``, a key that is younger than the run at its default; empty if it cannot be told."""
    try:
        there = {name: value for name, (value, _) in settings.from_file(folder / CONFIG).items()}
    except settings.SettingsError:
        return {}
    return identity({**settings.values(Config()), **there})


def differences(folder: Path, words: Sequence[str]) -> list[str]:
    """What the run in ``folder`` was made with where ``words`` ask for something else."""
    wanted, there = asked(words), found(folder)
    return [f"{name} = {there.get(name)!r}, not {value!r}" for name, value in wanted.items() if there.get(name) != value]
