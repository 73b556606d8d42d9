"""A run as text: sections of plain lines, at most 100 columns wide where the facts allow it."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from apts_mpi.arithmetic import Arithmetic
from apts_mpi.config import Config
from apts_mpi.origin import GIVEN, by_program, go_on
from apts_mpi.rundir import CONFIG, LOCK, Completion, Run, last_checkpoint
from apts_mpi.timing import render, size_text

BASICS = ("preset", "data.path", "data.batch", "model.name", "solver.subdomains", "local.solver", "global_step.solver", "run.seed")
LAST = 10  # iterations shown

_COLUMNS: tuple[tuple[str, str, int, str], ...] = (  # name in the records, heading, width, format
    ("epoch", "epoch", 6, ".2f"),
    ("iteration", "k", 5, "d"),
    ("loss", "loss", 9, "#.4g"),
    ("grad_norm", "|g|", 8, "#.3g"),
    ("rho", "rho", 7, ".2f"),
    ("radius", "radius", 8, "#.3g"),
    ("accepted", "acc", 3, "yes"),
    ("local_iters", "local", 6, "d"),
    ("passes", "evals", 7, ".1f"),
    ("reductions_total", "reds", 6, ".0f"),
    ("accuracy", "test%", 6, ".2f"),
    ("time", "time s", 8, ".1f"),
)


def sections(run: Run) -> list[tuple[str, list[str]]]:
    """(heading, lines) of everything worth knowing about ``run``."""
    parts = [
        ("Result", result(run)),
        ("Settings (the basics, and all that differ from their defaults)", settings(run)),
        ("Where it comes from", provenance(run.provenance)),
        (f"Last iterations of {count(run)}", iterations(run)),
        (f"Wall time by phase and region, over the ranks{_since(run)}", render(run.times) if run.times else []),
    ]
    return [(heading, lines) for heading, lines in parts if lines]


def _since(run: Run) -> str:
    """What the times are of, where a run was gone on with."""
    return f", since the last start after iteration {run.resumed[-1]}" if run.resumed else ""


def count(run: Run) -> int:
    """Outer iterations on record."""
    return len(next(iter(run.columns.values()), ()))


def result(run: Run) -> list[str]:
    """How the run ended, or that it did not."""
    done = run.completion
    if done is None:
        kept = last_checkpoint(run.path)
        saved = kept is not None and kept >= count(run) and not (run.path / LOCK).exists()  # a killed process leaves its lock
        lost = f"did not finish: no completion record; {count(run)} outer iterations on record"
        told = {"status": f"stopped, saved after iteration {kept}" if saved else lost}
        if kept is not None:
            how = go_on(run.path, int(run.provenance.get("ranks", 1)), bool(by_program(run.provenance)))
            told["go on with"] = how if saved else f"{how}   (from the checkpoint after iteration {kept})"
        return aligned(told)
    times = f"{len(run.resumed)} time{'s' * (len(run.resumed) > 1)}, after iteration {', '.join(map(str, run.resumed))}"
    return aligned(_result(done) | ({"resumed": times} if run.resumed else {}) | _rates(run, done))


def _rates(run: Run, done: Completion) -> dict[str, object]:
    """GFLOP/s and the share of the peak, where they are on record."""
    facts = {name: run.provenance.get(name) for name in ("flops_per_gradient", "flops_per_value", "peak_flops")}
    known = Arithmetic(*(math.nan if value is None else float(value) for value in facts.values()))
    columns = [run.columns.get(name) for name in ("gradient_samples", "value_samples")]
    total, last = (
        known.total(*(math.nan if column is None else float(column[first:].sum()) for column in columns))
        for first in (0, run.resumed[-1] if run.resumed else 0)
    )
    text = known.text(total, last, done.ranks, done.seconds, run.times)
    return {"arithmetic": text} if text else {}


def _result(done: Completion) -> dict[str, object]:
    return {
        "status": done.status,
        **({} if math.isnan(done.accuracy) else {"test accuracy": f"{done.accuracy:.2f} %"}),
        "training loss": _figure(done.loss, "{:.6g}"),
        "iterations": f"{done.iterations} outer, {_figure(done.epochs, '{:.4g}')} epochs",
        "work": f"gradient evaluations for {_figure(done.passes, '{:.1f}')} passes over the training set",
        "communication": f"{done.reductions} vector reductions, {done.messages} messages, {size_text(done.bytes)} per rank",
        "size": f"n = {done.n_params:,} parameters, N = {done.subdomains} subdomains, P = {done.ranks} ranks",
        "wall time": _figure(done.seconds, "{:.1f} s"),
        "theta sha256": done.theta_sha256,
    }


def _figure(value: float, pattern: str) -> str:
    return "unknown" if math.isnan(value) else pattern.format(value)


def settings(run: Run) -> list[str]:
    """The settings a reader asks for first, and every one that differs from its default; none that the run did not read."""
    found, defaults = flat(config(run)), flat(asdict(Config()))
    found = {name: value for name, value in found.items() if not (by_program(run.provenance) and name in GIVEN)}
    shown = {name: value for name, value in found.items() if name in BASICS or value != defaults.get(name)}
    return aligned({name: shown[name] for name in (*BASICS, *sorted(shown)) if name in shown})


def config(run: Run) -> dict[str, Any]:
    """config.toml as nested dicts; ValueError names the file."""
    try:
        return tomllib.loads(run.config)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{run.path / CONFIG} is not TOML: {error}") from error


def flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} as {"a.b": 1}; tuples as lists, the way TOML reads them."""
    found: dict[str, Any] = {}
    for name, value in nested.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = list(value) if isinstance(value, tuple) else value
    return found


def provenance(facts: Mapping[str, Any]) -> list[str]:
    """Code, libraries, machines and data; what an older record lacks is left out."""
    hosts = list(dict.fromkeys(facts.get("hosts", [])))
    devices = list(dict.fromkeys(facts.get("devices", [])))
    shown = {
        "started": facts.get("started_utc"),
        "origin": by_program(facts),
        "command": _command(facts),
        "version": " ".join(str(facts[name]) for name in ("package_version", "git_commit") if facts.get(name)),
        "libraries": ", ".join(f"{name} {version}" for name, version in facts.get("versions", {}).items()),
        "MPI": str(facts.get("mpi_library", "")).partition("\n")[0][:80],
        "hosts": ", ".join(hosts[:4]) + (f" and {len(hosts) - 4} more" if len(hosts) > 4 else ""),
        "devices": ", ".join(devices),
        "kernels": _kernels(str(facts.get("native", "")), devices),
        "ranks": f"{facts.get('ranks', '?')}, threads of each: {facts.get('threads_per_rank', '?')}",
        "network": facts.get("emulated_network"),
        "data": facts.get("data_fingerprint"),
        "config sha256": facts.get("config_sha256"),
    }
    return aligned({name: value for name, value in shown.items() if value})


def _command(facts: Mapping[str, Any]) -> str:
    """What was typed on each rank, and on how many."""
    command, ranks = facts.get("command"), facts.get("ranks")
    return f"{command}   (on {ranks} ranks)" if command and isinstance(ranks, int) and ranks > 1 else command or ""


def _kernels(known: str, devices: Sequence[str]) -> str:
    """The kernels without those of a GPU, where none was used."""
    return known if any(device.startswith("cuda") for device in devices) else known.removesuffix(", CUDA")


def iterations(run: Run) -> list[str]:
    """The last iterations as a table of the columns that exist."""
    columns = [entry for entry in _COLUMNS if entry[0] in run.columns]
    if "accuracy" in run.columns and np.isnan(run.columns["accuracy"]).all():
        columns = [entry for entry in columns if entry[0] != "accuracy"]
    if not columns or not count(run):
        return []
    lines = [" ".join(heading.rjust(width) for _, heading, width, _ in columns)]
    for index in range(max(0, count(run) - LAST), count(run)):
        row = {name: column[index].item() for name, column in run.columns.items()}
        lines.append(" ".join(_cell(row, name, form).rjust(width) for name, _, width, form in columns))
    return lines


def _cell(row: Mapping[str, Any], name: str, form: str) -> str:
    value = row[name]
    if form == "yes":  # as in the log: both steps, where there was a global one
        both = "global_accepted" in row and not math.isnan(row.get("global_rho", math.nan))
        return "/".join("y" if row[step] else "n" for step in ("accepted", *(["global_accepted"] if both else [])))
    if not isinstance(value, int | float) or math.isnan(value):
        return ""
    return format(int(value) if form == "d" else value, form)


def aligned(facts: Mapping[str, object]) -> list[str]:
    """'name   value' lines with the values in one column."""
    width = max(map(len, facts), default=0)
    return [f"{name:<{width}}  {value}" for name, value in facts.items()]
