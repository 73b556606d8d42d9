"""The file of a picture shows the colours that were drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from apts_mpi.study import style

pytest.importorskip("matplotlib")
Image = pytest.importorskip("PIL.Image")


def test_a_small_picture_keeps_the_colours_of_thin_lines_beside_many_shades(tmp_path: Path) -> None:
    """Shades of some colours fill the panel; each other one has a short thin line."""
    figure = style.new_figure(12, 7)
    panel, across = figure.subplots(), np.arange(400)
    walks = np.random.default_rng(0).standard_normal((60, 400)).cumsum(1)
    for i, walk in enumerate(walks):
        panel.fill_between(across, walk - 1, walk + 1, color=style.COLOURS[(0, 1, 4)[i % 3]], alpha=0.2)
    for i, colour in enumerate(style.COLOURS):
        panel.plot([0, 30], [i, i], color=colour, linewidth=1.5)
    path = style.save(figure, tmp_path / "picture")[1]
    assert path.stat().st_size <= style.PNG_BYTES
    shown = np.unique(np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3).astype(int), axis=0)
    for colour in ("#FFFFFF", *style.COLOURS):
        wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
        assert np.abs(shown - wanted).max(1).min() <= 2, f"{colour} is not in the picture"
