"""Named sets of values: what a preset changes against the defaults of ``config``; explicit keys win over it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from apts_mpi.baseline import METHODS
from apts_mpi.config import Config

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "default": {},
    "paper": {  # Algorithm 1 to the letter, with the published constants
        "solver": {"combine": "sum", "radius": "shared"},
        "local": {"iters": 5, "gamma": 1.0, "radius_start": 1.0, "carry": False},
        "trust_region": {"radius_init": 0.01, "radius_min": 0.001, "radius_max": 4.0, "eta1": 0.25},
    },
    "sweep": {
        "solver": {"average": 8},
        "local": {"solver": "sweep", "chunks_min": 20},
        "global_step": {"solver": "none"},
        "trust_region": {"radius_init": 1.0, "radius_max": 1e6, "eta0": 0.1, "eta1": 0.25, "reached": 0.55},
    },
}


def preset(name: str, method: str = "apts", **sections: dict[str, Any]) -> Config:
    """The config of a preset with some keys changed: ``preset("sweep", stop={"epochs": 4})``."""
    if name not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {name!r}")
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    base = Config(preset=name)  # type: ignore[arg-type]
    merged = {key: dict(PRESETS[name].get(key, {})) for key in {*PRESETS[name], *sections}}
    for section, keys in sections.items():
        merged[section].update(keys)
    changed = {section: replace(getattr(base, section), **keys) for section, keys in merged.items()}
    return replace(base, method=method, **changed)
