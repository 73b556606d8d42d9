"""The text of one outer iteration: columns, widths and their legend; ASCII only."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from apts_mpi.contracts import StepInfo

Extra = Mapping[str, float | None]

LEGEND = (
    "epoch  passes of the data order so far        k      outer iteration",
    "loss   training loss before the step          |g|    norm of its gradient",
    "rho    actual / predicted decrease            radius bound on the length of the step",
    "acc    accepted (y, n): step of the subdomains / global step",
    "local  local iterations of all subdomains     evals  gradient evaluations so far, in training sets",
    "reds   sums of a whole vector over the ranks  test%  test accuracy     time, eta  spent, left",
)


def duration(seconds: float | None) -> str:
    """Seconds for people, at most 6 wide: '12.3s', '12:34', '3h05m', '4d03h'; '-' when unknown."""
    if seconds is None or not math.isfinite(seconds) or seconds < 0:
        return "-"
    if seconds < 99.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d}"
    if whole < 360_000:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    days = whole // 86_400
    return f"{days}d{whole % 86_400 // 3600:02d}h" if days < 100 else ">99d"


def _ratio(value: float) -> str:
    if math.isfinite(value) and abs(value) >= 1000:
        return ">999" if value > 0 else "<-999"
    return "-" if math.isnan(value) else f"{value:.2f}"


def _verdict(info: StepInfo) -> str:
    second = "" if math.isnan(info.global_rho) else "/y" if info.global_accepted else "/n"
    return ("y" if info.accepted else "n") + second


Cell = Callable[[StepInfo, Extra], str]
COLUMNS: tuple[tuple[str, int, Cell], ...] = (  # name, width, text; 90 wide with the blanks between
    ("epoch", 5, lambda info, extra: f"{number(extra, 'epoch', info.epoch):.1f}"),
    ("k", 5, lambda info, extra: str(info.k)),
    ("loss", 9, lambda info, extra: f"{info.loss:#.4g}"),
    ("|g|", 8, lambda info, extra: f"{info.grad_norm:#.3g}"),
    ("rho", 6, lambda info, extra: _ratio(info.rho)),
    ("radius", 8, lambda info, extra: "-" if math.isnan(info.radius) else f"{info.radius:#.3g}"),
    ("acc", 3, lambda info, extra: _verdict(info)),
    ("local", 5, lambda info, extra: str(info.local_iters)),
    ("evals", 6, lambda info, extra: f"{number(extra, 'passes'):.1f}"),
    ("reds", 5, lambda info, extra: f"{number(extra, 'reductions_total'):.0f}"),
    ("test%", 6, lambda info, extra: "" if extra.get("accuracy") is None else f"{number(extra, 'accuracy'):.2f}"),
    ("time", 6, lambda info, extra: duration(extra.get("time"))),
    ("eta", 6, lambda info, extra: duration(extra.get("eta"))),
)
NARROW = ("local", "reds")  # what a terminal below 91 columns does without


def number(extra: Extra, key: str, missing: float = math.nan) -> float:
    value = extra.get(key)
    return missing if value is None else value


def heading(without: Sequence[str] = ()) -> str:
    """The names of the columns, aligned with ``line``."""
    return " ".join(name.rjust(width) for name, width, _ in COLUMNS if name not in without)


def line(info: StepInfo, extra: Extra, without: Sequence[str] = ()) -> str:
    """One outer iteration as text."""
    return " ".join(cell(info, extra).rjust(width) for name, width, cell in COLUMNS if name not in without)


def facts(header: Mapping[str, object]) -> list[str]:
    """Facts as aligned lines, 'data     digits, 1,437 samples'."""
    width = max(map(len, header), default=0)
    return [f"{name:<{width}}  {value}" for name, value in header.items()]
