"""A plot of differences shows every estimate where it is, told apart without colours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from diffscale.report import plots

KNOWN = {"mean": 0.2, "low": 0.1, "high": 0.4}
EXACT = {"mean": 0.3, "low": 0.3, "high": 0.3}
LOW, BEYOND = {"mean": -0.5, "low": -0.7, "high": 0.1}, {"mean": 0.6, "low": 0.5, "high": 0.7, "beyond": 1.0}
ROWS = {"best": {"80 NFE": [KNOWN, KNOWN], "320 NFE": [EXACT, EXACT]}, "worst": {"320 NFE": [LOW, BEYOND]}}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[list[Any], Path]:
    seen: list[Any] = []
    monkeypatch.setattr(plots, "clean_axes", seen.append)
    plots.forest(ROWS, ["at equal NFE", "in equal seconds"], "title", tmp_path / "forest.png", "too slow")
    return seen, tmp_path / "forest.png"


def lines(axes: Any) -> tuple[dict[tuple[float, float], float], list[tuple[float, float, str, bool]]]:
    """The intervals, with their heights, and the marks as (mean, height, shape, open) of a panel."""
    every = [line for line in axes.lines if len(line.get_xdata()) and line.get_xdata()[0] != line.get_xdata()[-1]]
    marks = [line for line in axes.lines if len(line.get_xdata()) == 1]
    return (
        {tuple(line.get_xdata()): line.get_ydata()[0] for line in every},
        [
            (
                line.get_xdata()[0],
                line.get_ydata()[0],
                line.get_marker(),
                to_rgb(line.get_markerfacecolor()) == (1, 1, 1),
            )
            for line in marks
        ],
    )


def test_every_estimate_is_where_its_row_and_panel_are(drawn: tuple[list[Any], Path]) -> None:
    (left, right), _ = drawn
    intervals, marks = lines(left)
    assert list(intervals) == [(0.1, 0.4), (-0.7, 0.1)]
    assert [(mean, shown) for mean, _, _, shown in marks] == [(0.2, False), (0.3, False), (-0.5, False)]
    heights = [height for _, height, _, _ in marks]
    assert [round(height) for height in heights] == [0, 0, 1] and heights == sorted(set(heights))
    assert intervals[0.1, 0.4] == heights[0] and intervals[-0.7, 0.1] == heights[2]
    # The first row is at the top, and a budget has its shape and its place in every row.
    assert left.get_ylim()[0] > left.get_ylim()[1]
    assert [label.get_text() for label in left.get_yticklabels()] == ["best", "worst"]
    assert marks[0][2] != marks[1][2] == marks[2][2]
    assert heights[1] == pytest.approx(heights[2] - 1)
    assert lines(right)[1][2][0] == 0.6 and [shown for *_, shown in lines(right)[1]] == [False, False, True]
    assert (left.get_xlabel(), right.get_xlabel()) == ("at equal NFE", "in equal seconds")
    # What is compared across panels has one scale, with no estimate cut off.
    assert left.get_xlim() == right.get_xlim() and left.get_xlim()[0] < -0.7 and left.get_xlim()[1] > 0.7


def test_its_legend_has_every_mark_and_what_open_means(drawn: tuple[list[Any], Path]) -> None:
    (left, _), path = drawn
    (legend,) = left.figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["80 NFE", "320 NFE", "open: too slow"]
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("L"))
    for edge in (pixels[:3], pixels[-3:], pixels[:, :3], pixels[:, -3:]):
        assert (edge == 255).all()  # nothing is cut off
