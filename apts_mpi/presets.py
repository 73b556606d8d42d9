"""Named sets of values: what a preset or a method changes against the defaults of ``config``; explicit keys win over both."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from apts_mpi.baseline import METHODS
from apts_mpi.config import Config

Tree = dict[str, dict[str, Any]]
PRESETS: dict[str, Tree] = {
    "default": {},
    "lsr1": {  # quasi-Newton steps, in the subdomains and on all data
        "solver": {"average": 0},
        "local": {"solver": "lsr1", "memory": 5},
        "global_step": {"solver": "lsr1"},
        "trust_region": {"radius_init": 0.1, "radius_max": 8.0, "eta0": 0.0, "eta1": 0.1, "reached": 0.8},
    },
    "paper": {  # Algorithm 1 to the letter, with the published constants
        "solver": {"combine": "sum", "radius": "shared", "average": 0},
        "local": {"solver": "lsr1", "iters": 5, "memory": 5, "gamma": 1.0, "radius_start": 1.0, "carry": False},
        "global_step": {"solver": "lsr1"},
        "trust_region": {"radius_init": 0.01, "radius_min": 0.001, "radius_max": 4.0, "eta0": 0.0, "eta1": 0.25, "reached": 0.8},
    },
}
# The default has neither the model nor the radii that a global trust region alone needs: those of lsr1 are its own.
OF_METHODS: dict[str, Tree] = {"trust-region": {part: PRESETS["lsr1"][part] for part in ("global_step", "trust_region")}}


def layers(name: str, method: str) -> list[tuple[str, Tree]]:
    """What lies between the defaults and explicit keys, lowest first, each with its source in words."""
    return [(f"method {method}", OF_METHODS.get(method, {})), (f"preset {name}", PRESETS[name])]


def preset(name: str, method: str = "apts", **sections: dict[str, Any]) -> Config:
    """The config of a preset with some keys changed: ``preset("lsr1", stop={"epochs": 4})``."""
    if name not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {name!r}")
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    base, merged = Config(preset=name), Tree()  # type: ignore[arg-type]
    for tree in (*(tree for _, tree in layers(name, method)), sections):
        for section, keys in tree.items():
            merged.setdefault(section, {}).update(keys)
    changed = {section: replace(getattr(base, section), **keys) for section, keys in merged.items()}
    return replace(base, method=method, **changed)
