"""The text of one outer iteration: columns, widths and their legend; ASCII only."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from textwrap import wrap

from apts_mpi.contracts import StepInfo

Extra = Mapping[str, float | None]

LEGEND = {  # column -> its words
    "epoch": "passes of the data order so far", "k": "outer iteration", "loss": "training loss before the step",
    "|g|": "norm of its gradient", "rho": "actual / predicted decrease", "radius": "bound on the step's length",
    "acc": "accepted (y, n): step of the subdomains / global step", "local": "local iterations of all subdomains",
    "evals": "gradient evaluations so far, in training sets", "reds": "reductions of a whole vector so far",
    "test%": "test accuracy", "time": "time spent", "eta": "time left",
}  # fmt: skip
TEST = "test%"  # the column that a run without class labels does without
TRIALS = ("rho", "radius", "acc")  # those of a method that tests its steps
LOCAL = "local"  # that of a method with steps between two sums
HALF = 46  # where the right half of the legend begins


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
    ("|g|", 8, lambda info, extra: "-" if math.isnan(info.grad_norm) else f"{info.grad_norm:#.3g}"),
    ("rho", 6, lambda info, extra: _ratio(info.rho)),
    ("radius", 8, lambda info, extra: "-" if math.isnan(info.radius) else f"{info.radius:#.3g}"),
    ("acc", 3, lambda info, extra: _verdict(info)),
    ("local", 5, lambda info, extra: str(info.local_iters)),
    ("evals", 6, lambda info, extra: f"{number(extra, 'passes'):.1f}"),
    ("reds", 5, lambda info, extra: f"{number(extra, 'reductions_total'):.0f}"),
    (TEST, 6, lambda info, extra: "" if extra.get("accuracy") is None else f"{number(extra, 'accuracy'):.2f}"),
    ("time", 6, lambda info, extra: duration(extra.get("time"))),
    ("eta", 6, lambda info, extra: duration(extra.get("eta"))),
)
NARROW = ("local", "reds", "|g|", "eta", "epoch", "radius", "evals", "time", "rho")  # what narrower terminals do without, this order


def number(extra: Extra, key: str, missing: float = math.nan) -> float:
    value = extra.get(key)
    return missing if value is None else value


def spare(width: int | None, without: Sequence[str] = ()) -> Sequence[str]:
    """The columns beside ``without`` that lines of at most ``width`` do without, no more than it takes; None: any width."""
    dropped: tuple[str, ...] = ()
    for name in NARROW:
        if width is None or len(heading((*without, *dropped))) <= width:
            break
        dropped += (name,)
    return dropped


def legend(width: int | None = None, without: Sequence[str] = (), averaged: bool = False) -> list[str]:
    """What the columns mean that are shown, two in a line where both fit into ``width``.

    ``averaged``: the test accuracy is that of the mean of the iterates.
    """
    text = [""]
    for name, words in LEGEND.items():
        entry = f"{name:<6} {words}" + (", mean of the iterates" if averaged and name == TEST else "")
        if name in without or name in spare(width, without):
            continue
        if 0 < len(text[-1]) < HALF and HALF + len(entry) <= (width or 100):
            text[-1:] = [f"{text[-1]:<{HALF}}{entry}", ""]
        else:
            text[-1:] = [text[-1], entry] if text[-1] else [entry]
    return [line for entry in text if entry for line in wrapped(entry, 7, width)]


def wrapped(text: str, indent: int, width: int | None) -> list[str]:
    """The text in lines of at most ``width``, broken between words, all but the first indented."""
    if width is None or len(text) <= width:
        return [text]
    return wrap(text, max(width, indent + 20), subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False)


def heading(without: Sequence[str] = ()) -> str:
    """The names of the columns, aligned with ``line``."""
    return " ".join(name.rjust(width) for name, width, _ in COLUMNS if name not in without)


def line(info: StepInfo, extra: Extra, without: Sequence[str] = ()) -> str:
    """One outer iteration as text."""
    return " ".join(cell(info, extra).rjust(width) for name, width, cell in COLUMNS if name not in without)


def facts(header: Mapping[str, object], width: int | None = None) -> list[str]:
    """Facts as aligned lines, 'data     digits, 1,437 samples', broken where they are longer than ``width``."""
    indent = 2 + max(map(len, header), default=0)
    return [line for name, value in header.items() for line in wrapped(f"{name:<{indent}}{value}", indent, width)]
