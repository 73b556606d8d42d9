"""What all pictures have in common: colours that are told apart by colour-blind eyes, quiet axes, files of bounded size."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")  # Okabe, Ito
MANY = (*COLOURS, "#882255", "#117733", "#999999", "#661100", "#AA4499", "#332288")  # then those of Tol
DASHES = ("-", "--", ":")  # after the colours are used up
MARKERS = ("o", "s", "^", "v", "D", "P", "X")
PNG_BYTES = 120_000
RESOLUTIONS = (130, 110, 90, 70, 50)  # dots per inch, the first that is small enough


def new_figure(width: float, height: float, extra: str = "study") -> Figure:
    """An empty figure in inches; ModuleNotFoundError names the extra to install."""
    # Not pyplot: it would open windows and change a notebook's backend.
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"drawing needs matplotlib; install it with: pip install 'apts_mpi[{extra}]'") from error
    return Figure(figsize=(width, height), layout="constrained")


def quiet(panel: Axes) -> None:
    """A light grid behind the data, no frame above and to the right."""
    panel.grid(True, color="0.9", linewidth=0.6)
    panel.set_axisbelow(True)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)


def by_ranks(panel: Axes, ranks: Sequence[int]) -> None:
    """Rank counts across, each doubling equally wide."""
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

    panel.set_xscale("log", base=2)
    panel.xaxis.set_major_locator(FixedLocator(list(ranks)))
    panel.xaxis.set_major_formatter(FixedFormatter([str(count) for count in ranks]))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.set_xlim(min(ranks) / 1.25, max(ranks) * 1.25)
    panel.set_xlabel("ranks P")


def plain_numbers(axis: Axis, low: float, high: float) -> None:
    """Ticks of a logarithmic axis from low to high as 0.2, 0.5, 1 where they are few, as powers of ten elsewhere."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    if high > 1000 * low:
        return
    subs = (1, 1.5, 2, 3, 4, 5, 7) if high < 4 * low else (1, 2, 5)
    axis.set_major_locator(LogLocator(base=10, subs=subs))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"))


def doublings(panel: Axes, values: NDArray[np.float64]) -> None:
    """An upright logarithmic axis for the positive ones of ``values`` with at most nine ticks, at powers of two."""
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

    shown = values[(values > 0) & np.isfinite(values)]
    if not len(shown):
        return
    low, high = math.floor(math.log2(shown.min())), math.ceil(math.log2(shown.max()))
    low, high = (low - 1, high + 1) if low == high else (low, high)
    powers = range(high, low - 1, -math.ceil((high - low) / 8))
    panel.set_yscale("log", base=2)
    panel.yaxis.set_major_locator(FixedLocator([2.0**k for k in powers]))
    panel.yaxis.set_major_formatter(FixedFormatter([f"{2.0**k:g}" if -4 <= k <= 10 else f"$2^{{{k}}}$" for k in powers]))
    panel.yaxis.set_minor_locator(NullLocator())
    panel.set_ylim(2 ** (low - 0.2), 2 ** (high + 0.2))


def legend(figure: Figure, handles: Sequence[Any], names: Sequence[str], columns: int, **style: Any) -> None:
    """A legend in at most ``columns`` columns, in fewer where the figure is not wide enough; names wider than it are broken.

    Lines are opaque in it, as they look where many lie over each other: colours that the page shines through are hard to tell apart.
    """

    def draw(names: Sequence[str], **more: int) -> Legend:
        found = figure.legend(handles, names, frameon=False, **more, **style)
        for line in found.get_lines():
            line.set_alpha(1)
        return found

    for count in range(max(1, min(columns, len(names))), 0, -1):
        made = draw(names, ncols=count)
        width = made.get_window_extent().width / figure.bbox.width
        if width <= 1:
            return
        made.remove()
    room = int(0.9 * max(map(len, names)) / width)  # beside the line
    draw([fill(name, room) for name in names])


def legend_below(figure: Figure, panels: Iterable[Axes], columns: int = 4) -> None:
    """One legend for all panels, below them: what was measured first, then the lines beside it."""
    found: dict[str, Any] = {}
    for panel in panels:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    ordered = sorted(found, key=lambda label: not hasattr(found[label], "has_yerr"))  # containers of error bars come first
    if ordered:
        handles = [found[label] for label in ordered]
        legend(figure, handles, ordered, columns, loc="outside lower center", fontsize=9)


def save(figure: Figure, stem: Path) -> list[Path]:
    """STEM.pdf for a paper and STEM.png, at most ``PNG_BYTES``, for a page."""
    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in ("pdf", "png")]
    figure.savefig(paths[0], metadata={"CreationDate": None})  # the same figure gives the same file
    paths[1].write_bytes(_small(figure))
    return paths


def _small(figure: Figure) -> bytes:
    """A PNG of 256 colours, of lower resolution where it would be too large; ours are among them, else thin lines lose theirs to shades."""
    from PIL import Image  # matplotlib needs it too

    own = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in ("#FFFFFF", *MANY)])

    for dots in RESOLUTIONS:
        raw, packed = io.BytesIO(), io.BytesIO()
        figure.savefig(raw, format="png", dpi=dots, facecolor="white")
        with Image.open(raw) as image:
            plain, palette = image.convert("RGB"), Image.new("P", (1, 1))
            shades = np.reshape(plain.quantize(256 - len(own)).getpalette() or [], (-1, 3))
            apart = np.abs(shades[:, None] - own).max(2).min(1) > 8  # Pillow looks for the nearest one coarsely
            palette.putpalette([*own.ravel().tolist(), *shades[apart].ravel().tolist()])
            plain.quantize(palette=palette, dither=Image.Dither.NONE).save(packed, format="png", optimize=True)
        if len(packed.getvalue()) <= PNG_BYTES:
            break
    return packed.getvalue()
