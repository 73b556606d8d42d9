"""Small records of runs, to be committed: what tables and figures read of a run directory, in a few kB that name no folder."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paper.curves import FACTS, Curve, Numbers
from paper.identity import restored
from paper.limits import Limits, Used

FORMAT, VERSION = "apts-mpi paper record", 1
SPREAD = 60  # iterations whose loss and seconds are kept in any case, evenly spread
LONGEST = 10**7  # iterations of a run, as far as a record is believed
LOSS, ACCURACY, WORTH, EXACT = 6, 9, 9, 12  # significant digits
Json = dict[str, Any]


@dataclass(frozen=True)
class Record:
    """A run as its record has it."""

    curve: Curve
    settings: dict[str, object]  # its identity
    untils: tuple[Limits, ...]  # budgets that it has spent


def path_of(records: Path, case: str, name: str) -> Path:
    """Where the record of a run lies, which is called as its folder is."""
    return records / case / f"{name}.json"


def keep(
    path: Path, curve: Curve, settings: Mapping[str, object], untils: Iterable[Limits], worth: Callable[[], dict[str, float]],
    again: bool = False,
) -> bool:  # fmt: skip
    """Write the record of a run, unless the one that is there says as much or goes further; whether it was written.

    One that another source made with the same settings stays if it goes as far, but for ``again``.
    """
    before, limits = _before(path), [until for until in untils if curve.enough(until)]
    new = pack(curve, settings, limits)
    if before is not None and before["settings"] == new["settings"] and not (again and before["facts"] != new["facts"]):
        old, same = _unpacked(before), before["facts"] == new["facts"]
        if len(old.curve.accuracy) > len(curve.accuracy) or (not same and len(old.curve.accuracy) == len(curve.accuracy)):
            return False
        new = pack(curve, settings, [*limits, *(until for until in old.untils if curve.enough(until))])
        if before["worth"] and {**before, "worth": {}} == new:
            return False
    new["worth"] = {name: _short(value, WORTH) for name, value in worth().items()}
    if before == new:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    fresh.write_text(f"{text(new)}\n", encoding="utf-8")
    os.replace(fresh, path)
    return True


def read_record(path: Path) -> Record:
    """The record in this file; ValueError names one that is none, or damaged."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        if told["format"] != FORMAT or told["format_version"] != VERSION:
            raise ValueError(f"format {told['format']!r}, version {told['format_version']!r}")
        found = _unpacked(told)
        if path.stem != f"seed-{found.curve.seed}":
            raise ValueError(f"seed {found.curve.seed}")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as problem:
        raise ValueError(f"{'/'.join(path.parts[-3:])} is no record, or damaged: {type(problem).__name__} {problem}") from problem
    return found


def _before(path: Path) -> Json | None:
    """What is in this file already, if it is a record."""
    try:
        read_record(path)
        found: Json = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None
    return found


def pack(curve: Curve, settings: Mapping[str, object], untils: Iterable[Limits]) -> Json:
    """A run as JSON has it, but for its worth."""
    used, limits = curve.used, sorted({*untils}, key=str)
    tested, kept = np.flatnonzero(np.isfinite(curve.accuracy)), _kept(curve, limits)
    reduced = float(used.reductions[-1])
    packed = {
        "format": FORMAT, "format_version": VERSION, "seed": curve.seed, "status": curve.status, "settings": dict(settings),
        "limits": [{name: limit for name, limit in vars(until).items() if math.isfinite(limit)} for until in limits],
        "facts": {name: curve.facts.get(name) for name in (*FACTS, "jobs")}, "worth": {},
        "epochs": _rising(used.epochs, _unit(used.epochs)), "passes": _rising(used.passes, curve.samples),
        "reductions": _rising(used.reductions, 1), "values": _rising(curve.values, curve.samples), "samples": round(curve.samples),
        "bytes_of_reduction": _short(float(curve.bytes[-1]) / reduced if reduced else 0.0, EXACT), "n_params": curve.n_params,
        "wall": _short(curve.wall, LOSS), "farthest": _short(curve.farthest, EXACT), "loss_end": _short(curve.loss_end, LOSS),
        "at": _grouped(np.diff(kept, prepend=-1)), "loss": _list(curve.loss[kept], LOSS), "seconds": _list(curve.seconds[kept], LOSS),
        "accuracy_at": _grouped(np.diff(tested, prepend=-1)), "accuracy": _list(curve.accuracy[tested], ACCURACY),
    }  # fmt: skip
    found: Json = json.loads(json.dumps(packed))
    return found


def _kept(curve: Curve, untils: Iterable[Limits]) -> NDArray[np.intp]:
    """The iterations whose loss and seconds are kept: with a test, at and behind the end of a budget, and some evenly spread."""
    count = len(curve.accuracy)
    ends = [end + shift for until in untils for end in [until.within(curve.used)] for shift in (-1, 0)]
    some = np.concatenate([np.flatnonzero(np.isfinite(curve.accuracy)), np.linspace(0, count - 1, SPREAD).astype(np.intp), ends])
    return np.unique(some[(some >= 0) & (some < count)]).astype(np.intp)


def _unit(values: Numbers) -> float:
    """Of what steps that are all equal are one."""
    return 1 / float(values[0]) if values[0] > 0 else 1.0


def _rising(values: Numbers, unit: float) -> Json:
    """Numbers that never fall: as increments where they are whole numbers of ``unit``s, else in ten digits behind the point."""
    whole = np.rint(values * round(unit))
    if round(unit) > 0 and np.allclose(whole / round(unit), values, rtol=1e-12, atol=0):
        return {"increments": _grouped(np.diff(whole, prepend=0)), "unit": round(unit)}
    return {"numbers": [round(float(value), 10) for value in values]}


def _risen(packed: Json) -> Numbers:
    if "numbers" in packed:
        values = np.asarray(packed["numbers"], np.float64)
    elif packed["unit"] < 1:
        raise ValueError(f"unit {packed['unit']}")
    else:
        values = np.cumsum(_flat(packed["increments"])) / packed["unit"]
    if not np.isfinite(values).all() or (np.diff(values, prepend=0) < 0).any():
        raise ValueError("numbers that fall, or are none")
    return values


def _grouped(increments: NDArray[Any]) -> list[int | list[int]]:
    """Whole numbers; several of them that are equal as [how many, which]."""
    found = [(len(list(equal)), int(value)) for value, equal in groupby(increments.tolist())]
    return [value if count == 1 else [count, value] for count, value in found]


def _flat(grouped: Sequence[int | list[int]]) -> NDArray[np.int64]:
    pairs = [[1, entry] if isinstance(entry, int) else entry for entry in grouped]
    if sum(count for count, _ in pairs) > LONGEST:
        raise ValueError("too long")
    return np.repeat(np.array([value for _, value in pairs], np.int64), [count for count, _ in pairs])


def _list(values: Numbers, digits: int) -> list[float | None]:
    return [_short(float(value), digits) for value in values]


def _short(value: float, digits: int) -> float | None:
    """Rounded; None: not finite."""
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _unpacked(told: Json) -> Record:
    used = Used(*(_risen(told[name]) for name in ("epochs", "passes", "reductions")))
    values, count = _risen(told["values"]), len(used.epochs)
    kept, tested = (np.cumsum(_flat(told[name])) - 1 for name in ("at", "accuracy_at"))
    if not count or {len(used.passes), len(used.reductions), len(values)} != {count}:
        raise ValueError("lists of several lengths")
    loss, accuracy = _spread(count, kept, told["loss"]), _spread(count, tested, told["accuracy"])
    seconds = np.interp(used.iterations, kept + 1.0, [_number(value) for value in told["seconds"]])
    curve = Curve(
        int(told["seed"]), used, values, used.reductions * told["bytes_of_reduction"], seconds, loss, _number(told["loss_end"]), accuracy,
        _number(told["farthest"]), int(told["n_params"]), float(told["wall"]), str(told["status"]),
        {name: told["facts"][name] for name in (*FACTS, "jobs")}, float(told["samples"]),
        {name: _number(value) for name, value in told["worth"].items()},
    )  # fmt: skip
    return Record(curve, restored(told["settings"], "settings"), tuple(Limits(**limits) for limits in told["limits"]))


def _spread(count: int, at: NDArray[Any], numbers: Sequence[float | None]) -> Numbers:
    """Numbers of some iterations, nan for the others."""
    found = np.full(count, math.nan)
    if len(at) != len(numbers) or (np.diff(at, prepend=-1) < 1).any():
        raise ValueError("numbers without their iterations")
    found[at] = [_number(value) for value in numbers]
    return found


def text(value: Any, indent: str = "") -> str:
    """JSON with sorted keys, one line for each entry and for each list."""
    if not isinstance(value, dict) or not value:
        return json.dumps(value, allow_nan=False)
    inner = f"{indent} "
    return "{\n" + ",\n".join(f'{inner}"{name}": {text(value[name], inner)}' for name in sorted(value)) + f"\n{indent}}}"
