"""The settings of a train command: their layers, those of the run to go on with, and what code they may name."""

from __future__ import annotations

import os
from collections.abc import Sequence

from apts_mpi import settings
from apts_mpi.config import Config
from apts_mpi.identity import before, knows
from apts_mpi.origin import refusal

AVERAGES = ("solver.average", "baseline.average")  # of apts, and of the other methods
CODE = ("model.name", "model.loss")  # package.module:attribute in them is imported, and so run


def read_settings(file: str | None, options: Sequence[tuple[str, str | None]], resume: str | None = None) -> settings.Settings:
    """The resolved settings of a train command, on top of those of the run to ``resume``; SettingsError if they are wrong."""
    layers = [*([settings.from_file(file)] if file else []), settings.from_environment(os.environ)]
    if resume is not None:
        layers = [_of_run(resume, [name for name, _ in options]), *layers]
        layers.append(settings.from_tree({"run": {"dir": resume, "resume": "must"}}, "command line --resume"))
    return checked(settings.resolve(*layers, settings.from_options(options)))


def checked(found: settings.Settings) -> settings.Settings:
    """``found``, unless a file in it names code to be run, which only who types the command may do, or a mean that is not read is typed."""
    values, method = settings.values(found.config), found.config.method
    read, other = AVERAGES if method == "apts" else AVERAGES[::-1]
    if found.sources[other].startswith("command line"):
        raise settings.SettingsError(f"--{other} is not read by method {method}; type --{read} {values[other]} instead")
    for name in CODE:
        if ":" in values[name] and found.sources[name].startswith("file "):
            told = f"{found.sources[name]} names code that would be run, {name} = {values[name]!r}"
            raise settings.SettingsError(f"{told}; if you trust it, type --{name} {values[name]} as well")
    return found


def unread(found: settings.Settings) -> list[str]:
    """What was typed, or set in the environment, and changes nothing in a run of this method, in words."""
    config = found.config
    by = config.method + (f" with local.solver {config.local.solver}" if config.method == "apts" else "")
    by += " and solver.combine sum" if config.method == "apts" and config.solver.combine == "sum" else ""
    typed = {name: source for name, source in found.sources.items() if source.startswith(("command line", "environment"))}
    baseline = config.method not in ("apts", "trust-region")  # no preset has values of theirs
    idle = [name for name in typed if not knows(config, name) or (baseline and name == "preset")]
    return [f"{name} ({typed[name]}) is not read by {by}" for name in idle]


def typed_code(config: Config) -> list[str]:
    """The options by which a command says that it trusts the code that ``config`` names."""
    values = settings.values(config)
    return [word for name in CODE if ":" in values[name] for word in (f"--{name}", values[name])]


def _of_run(folder: str, options: Sequence[str]) -> settings.Layer:
    """The layer of a run directory's settings."""
    if not folder or any(name in ("run.dir", "run.resume") for name in options):
        raise settings.SettingsError("--resume RUN needs the folder of a run, and no --run.dir or --run.resume beside it")
    path = os.path.join(folder, "config.toml")
    if not os.path.isfile(path):
        raise settings.SettingsError(f"--resume: {folder} is no run directory, config.toml is missing")
    if other := refusal(folder):
        raise settings.SettingsError(f"--resume: {other}")
    layer = settings.from_file(path)
    older = before({name: value for name, (value, _) in layer.items()})
    return layer | {name: (value, f"{path}, which is older than this key") for name, value in older.items()}
