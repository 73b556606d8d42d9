"""What makes a run the run it is: settings that bend its trajectory, those a method knows, and what was done before there was a key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apts_mpi import settings
from apts_mpi.config import Config

# Settings that do not move the trajectory up to where it is.
FREE = ("stop.", "checkpoint.", "safety.", "comm.emulate_", "run.", "data.path", "data.place")
BOUND = ("run.seed", "run.deterministic", "run.device")  # but for these
PARTS = ("solver.", "trust_region.", "local.", "global_step.")  # of APTS
GLOBAL = ("trust_region.", "global_step.", "local.gamma")  # of them, what the global trust region alone has too
METRIC = "local.memory"  # which a sweep has in full batch alone
MOMENTUM = "solver.momentum"  # which a sweep has with the mean of the steps alone
SWEEP = ("local.chunk", "local.passes", "local.momentum", MOMENTUM)  # what other local solvers do not have
BUT_SWEEP = ("local.iters", "local.radius_start", "local.carry")  # what a sweep does not have


def binds(name: str, config: Config) -> bool:
    """Whether another value of setting ``name`` would bend the trajectory."""
    if name in ("stop.epochs", "stop.iterations"):
        return config.method not in ("apts", "trust-region") and config.baseline.schedule == "cosine"
    return name in BOUND or (not name.startswith(FREE) and knows(config, name))


def knows(config: Config, name: str) -> bool:
    """Whether another value of setting ``name`` may make another run of this method."""
    if config.method == "apts":
        if name.startswith("baseline."):
            return False
        if config.local.solver == "sweep":
            where = {METRIC: not config.data.batch, MOMENTUM: config.solver.combine == "mean"}
            return name not in BUT_SWEEP and where.get(name, True)
        return not name.startswith(SWEEP)
    if config.method == "trust-region" and name.startswith(GLOBAL):
        return name != "trust_region.reached"  # of the ball
    return name == "solver.subdomains" or not name.startswith(PARTS)


def has_momentum(config: Config, subdomains: int) -> bool:
    """Whether the summed steps of ``subdomains`` in all keep some of the last one."""
    return config.solver.momentum and knows(config, MOMENTUM) and subdomains > 1


def before(given: Mapping[str, Any]) -> dict[str, Any]:
    """What was done before there was a key, for the keys that the settings ``given`` of a run do not have."""
    found = {
        "solver.average": 0, "solver.momentum": False, "trust_region.reached": 0.55 if given.get("local.solver") == "sweep" else 0.8,
        "baseline.average": given.get("solver.average", 0) if given.get("method", "apts") != "apts" else 0,
    }  # fmt: skip
    return {name: value for name, value in found.items() if name not in given}


def completed(given: Mapping[str, Any]) -> dict[str, Any]:
    """All settings of a run that may be older than some keys: these have what was done before them, or their defaults."""
    return {**settings.values(Config()), **before(given), **given}
