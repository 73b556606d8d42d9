"""Whether a run directory holds the run that a case means: its settings, but for those that do not make another run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from apts_mpi import settings
from apts_mpi.config import Config
from apts_mpi.identity import binds, completed, knows
from apts_mpi.regular import read_toml
from apts_mpi.rundir import CONFIG

FREE = ("stop.", "checkpoint.", "safety.", "comm.", "run.", "data.path", "preset")  # do not make another run; a preset's values do
BOUND = ("run.seed", "run.deterministic", "run.evaluate_iterations")  # but for these
ENDS = ("stop.epochs", "stop.iterations")  # and for these under a schedule that ends with the run


def identity(values: Mapping[str, object], config: Config) -> dict[str, object]:
    """The settings that make a run what it is."""
    bound = (*BOUND, *(name for name in ENDS if binds(name, config)))
    makes = {name: value for name, value in values.items() if name in bound or not name.startswith(FREE)}
    return {name: value for name, value in makes.items() if knows(config, name)}


def asked(words: Sequence[str]) -> dict[str, object]:
    """The identity of a run with these options of train."""
    pairs = [(words[index].removeprefix("--"), words[index + 1]) for index in range(0, len(words), 2)]
    config = settings.resolve(settings.from_options([("stop.epochs", "1"), *pairs])).config
    return identity(settings.values(config), config)


def found(folder: Path) -> dict[str, object]:
    """The identity of the run in ``folder``, which may be older than some keys; empty if it cannot be told."""
    try:
        tree = read_toml(folder / CONFIG)
        tree.pop("preset", None)  # its name may have gone; the file has every value
        return restored(tree)
    except (OSError, ValueError):
        return {}


def restored(tree: Mapping[str, Any], source: str = CONFIG) -> dict[str, object]:
    """The identity of a run from its settings, or from the identity that another source, with other keys, found; ValueError: it is none."""
    layer = settings.from_tree(tree, source)
    return identity(completed({name: value for name, (value, _) in layer.items()}), settings.resolve(layer).config)


def differences(run: Path | Mapping[str, object], words: Sequence[str]) -> list[str]:
    """What a run, by its folder or its identity, was made with where ``words`` ask for something else."""
    wanted, there = asked(words), found(run) if isinstance(run, Path) else run
    return [f"{name} = {there.get(name)!r}, not {value!r}" for name, value in wanted.items() if there.get(name) != value]
