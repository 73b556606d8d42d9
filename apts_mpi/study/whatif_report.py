"""What ``whatif`` found, as text, CSV and picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from apts_mpi.study.document import Heading, Paragraph, Part, Picture, Table
from apts_mpi.study.style import COLOURS, MARKERS, legend_below, new_figure, plain_numbers, quiet, save
from apts_mpi.study.whatif import ASSUMPTIONS, BLOCKING, LSR1, OVERLAPPED, PRICED, SAMPLES_MAX, Crossover, Row, Target

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAME = "whatif"
SHOWN = (1, 2, 8, 64, 512, 4096)  # rank counts of a report's tables
PRICES = f"{LSR1}, priced by the model and not measured."
NEVER = 0.5  # samples, where a picture shows that there is no range


def lines(rows: Sequence[Row]) -> list[str]:
    """Milliseconds per gradient, a table for each fabric, a column for each rank count."""
    if not rows:
        return [*PRICED, *ASSUMPTIONS]
    return [*_by_fabric(rows, f"ms per gradient of {rows[0].samples} samples per rank", 1e3), *PRICED, *ASSUMPTIONS]


def crossover_lines(found: Sequence[Crossover]) -> list[str]:
    """Samples per rank for which an APTS needs less time per gradient, a table for each fabric and each SGD."""
    text = []
    for fabric in _unique(each.fabric for each in found):
        for against in _unique(each.against for each in found):
            here = [each for each in found if (each.fabric, each.against) == (fabric, against)]
            what = f"widest range of samples per rank, of 1 to {SAMPLES_MAX}, with less time per gradient than {against}"
            text.append(f"{fabric}: {what}")
            text += _table([(each.method, each.ranks, str(each)) for each in here])
    return text


def target_lines(found: Sequence[Target]) -> list[str]:
    """Seconds to the target, a table for each fabric."""
    return _by_fabric(found, "seconds to target, if iterations and passes do not change with P", 1.0)


def _by_fabric(found: Sequence[Row] | Sequence[Target], title: str, unit: float) -> list[str]:
    """``unit`` times the seconds, a titled table for each fabric."""
    text = []
    for fabric in _unique(each.fabric for each in found):
        here = [each for each in found if each.fabric == fabric]
        text += [f"{fabric}: {title}", *_table([(each.method, each.ranks, f"{unit * each.seconds:.3g}") for each in here])]
    return text


def _table(cells: Sequence[tuple[str, int, str]]) -> list[str]:
    ranks = sorted({p for _, p, _ in cells})
    known = {(name, p): value for name, p, value in cells}
    names = _unique(name for name, _, _ in cells)
    width = 1 + max(len(text) for text in [*known.values(), *map(str, ranks), "1234567"])
    head = f"  {'P':<16}" + "".join(f"{p:>{width}}" for p in ranks)
    return [head, *(f"  {name:<16}" + "".join(f"{known.get((name, p), '-'):>{width}}" for p in ranks) for name in names), ""]


def parts(
    rows: Sequence[Row], found: Sequence[Crossover], targets: Sequence[Target], picture: Path, warnings: Sequence[str] = ()
) -> list[Part]:  # fmt: skip
    """The section of a report; ``picture`` is what ``write_whatif`` drew, ``warnings`` what speaks against the model."""
    across = [p for p in SHOWN if p in {each.ranks for each in found}]
    cells = {(each.fabric, each.method, each.against, each.ranks): str(each) for each in found}
    keys = list(dict.fromkeys((each.fabric, each.method, each.against) for each in found))
    crossing = Table(
        f"Widest range of samples per rank in which APTS needs less time per gradient evaluation (1 to {SAMPLES_MAX:,} tried). {PRICES}",
        ("fabric", "APTS", "than", *(f"P = {p:,}" for p in across)), tuple((*key, *(cells[*key, p] for p in across)) for key in keys),
        "crossover", words=3,
    )  # fmt: skip
    caption = (
        f"Predicted time per gradient evaluation of {rows[0].samples} samples per rank, and the crossovers, from 1 to 4,096 ranks. {PRICES}"
    )
    trust = "This is the cost model at work: it is no better here than in the table of predicted and measured seconds above."
    shown: list[Part] = [Heading("What if: other networks, more ranks")]
    shown += [Paragraph(text, loud=True) for text in warnings]
    shown += map(Paragraph, (trust, " ".join(PRICED), " ".join(ASSUMPTIONS)))
    return [*shown, Picture(picture, caption), crossing, *([_targets(targets)] if targets else [])]


def _targets(targets: Sequence[Target]) -> Table:
    ranks = sorted({each.ranks for each in targets if each.ranks in SHOWN})
    cells = {(each.fabric, each.method, each.ranks): f"{each.seconds:.3g}" for each in targets}
    keys = list(dict.fromkeys((each.fabric, each.method) for each in targets))
    return Table(
        "Predicted seconds to the target, if iterations and passes do not change with P; no more ranks than subdomains or samples allow.",
        ("fabric", "method", *(f"P = {p:,}" for p in ranks)), tuple((*key, *(cells.get((*key, p), "-") for p in ranks)) for key in keys),
        "targets", words=2,
    )  # fmt: skip


def figure(rows: Sequence[Row], found: Sequence[Crossover]) -> Figure:
    """For each fabric time per gradient, and below it the crossovers with both kinds of SGD, against the rank count."""
    fabrics = _unique(row.fabric for row in rows)
    picture = new_figure(3.4 * len(fabrics) + 0.6, 9.6)
    axes = picture.subplots(3, len(fabrics), sharex=True, sharey="row", squeeze=False)
    for column, fabric in enumerate(fabrics):
        _times(axes[0, column], [row for row in rows if row.fabric == fabric])
        axes[0, column].set_title(fabric, fontsize=10)
        for line, against in ((1, OVERLAPPED), (2, BLOCKING)):
            _crossings(axes[line, column], [each for each in found if (each.fabric, each.against) == (fabric, against)])
        axes[2, column].set_xlabel("ranks P")
    times = [1e3 * row.seconds for row in rows]
    plain_numbers(axes[0, 0].yaxis, min(times), max(times))
    axes[0, 0].set_ylabel(f"ms per gradient of\n{rows[0].samples} samples per rank")
    axes[1, 0].set_ylabel(f"faster than {OVERLAPPED}:\nsamples per rank")
    axes[2, 0].set_ylabel(f"faster than {BLOCKING}:\nsamples per rank")
    for dashes, end in (("--", "begins"), ("-", "ends")):
        axes[1, 0].plot([], [], dashes, color="0.3", linewidth=1.3, label=f"lower panels: range {end}")
    legend_below(picture, [*axes[0], axes[1, 0]], columns=6)
    return picture


def _times(panel: Axes, rows: Sequence[Row]) -> None:
    for index, method in enumerate(_unique(row.method for row in rows)):
        here = [row for row in rows if row.method == method]
        dashes = "--" if method in (BLOCKING, OVERLAPPED) else "-"
        panel.plot([row.ranks for row in here], [1e3 * row.seconds for row in here], dashes, label=method, **_style(index))  # type: ignore[arg-type]
    _dress(panel)


def _crossings(panel: Axes, found: Sequence[Crossover]) -> None:
    """A shaded range for each method, bordered where it begins (dashed) and ends; a marker alone says never."""
    for index, method in enumerate(_unique(each.method for each in found)):
        here = [each for each in found if each.method == method]
        won, style = [each for each in here if each.low], _style(index)
        ranks, low, high = [each.ranks for each in won], [each.low for each in won], [min(each.high, SAMPLES_MAX) for each in won]
        panel.fill_between(ranks, low, high, color=COLOURS[index % len(COLOURS)], alpha=0.12, linewidth=0)
        panel.plot(ranks, low, "--", **style)  # type: ignore[arg-type]
        panel.plot(ranks, high, **style)  # type: ignore[arg-type]
        never = [each.ranks for each in here if not each.low]
        panel.plot(never, [NEVER] * len(never), **{**style, "linewidth": 0})  # type: ignore[arg-type]
    _dress(panel)
    panel.set_ylim(NEVER / 1.6, SAMPLES_MAX * 1.6)
    ticks = [NEVER, 1, 16, 256, 4096, SAMPLES_MAX]
    panel.set_yticks(ticks, ["never", *(str(tick) for tick in ticks[1:-1]), "all"])
    panel.minorticks_off()


def _style(index: int) -> dict[str, object]:
    return {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)], "markersize": 3.5, "linewidth": 1.3}


def _dress(panel: Axes) -> None:
    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    quiet(panel)


def write_whatif(
    rows: Sequence[Row], found: Sequence[Crossover], out: Path, targets: Sequence[Target] = (), notes: Sequence[str] = ()
) -> list[Path]:
    """whatif.csv, .txt, .pdf and .png in folder ``out``; ``notes`` say what stood in for measurements."""
    out.mkdir(parents=True, exist_ok=True)
    table, text = out / f"{NAME}.csv", out / f"{NAME}.txt"
    table.write_text(_csv(rows), encoding="utf-8")
    text.write_text("\n".join([*lines(rows), "", *crossover_lines(found), *target_lines(targets), *notes]) + "\n", encoding="utf-8")
    return [table, text, *save(figure(rows, found), out / NAME)]


def _csv(rows: Sequence[Row]) -> str:
    stream = io.StringIO()
    names = ("fabric", "method", "ranks", "samples", "iteration_seconds", "gradients", "bytes", "seconds")
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerows([names, *([getattr(row, name) for name in names] for row in rows)])
    return stream.getvalue()


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
