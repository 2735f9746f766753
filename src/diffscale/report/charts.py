"""Small charts as SVG within a page, whose ink is that of the text around them, in light and in dark."""

import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any, Final

import matplotlib
from cycler import cycler
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from diffscale.report.plots import clean_axes, draw_line
from diffscale.report.text import label, one_line, svg_of

_INK: Final = "#010203"  # stands for the ink of the page
_COLOURS: Final = ("#3a86c8", "#d97a1f", "#2f9e6e", "#cf4f63", "#8a6fd1", "#a5762a", "#c65fa8", "#7d8590", "#8f9a1b",
                   "#1f9fb0")  # fmt: skip
_STYLE: Final = {
    "svg.fonttype": "none", "font.size": 9, "text.color": _INK, "axes.labelcolor": _INK, "axes.edgecolor": _INK,
    "xtick.color": _INK, "ytick.color": _INK, "grid.color": _INK, "axes.prop_cycle": cycler(color=_COLOURS),
}  # fmt: skip
_BELOW: Final[dict[str, Any]] = {"loc": "outside lower center", "ncols": 3, "fontsize": 8, "frameon": False}
_FEW: Final = 12  # points at which a chart has its ticks,
_APART: Final = 1.15  # unless one is so near to the one before it
_BAND: Final = ("mean", "low", "high")


def trajectory(
    trace: Sequence[tuple[int, float]], candidates: Sequence[tuple[int, float]], rounds: Sequence[int], score: str
) -> Markup:
    """The best score so far against NFE over the `candidates` (NFE, score); a line wherever one of `rounds` ended."""

    def draw(axes: Any) -> None:
        for nfe in rounds if len(rounds) <= 40 else ():
            axes.axvline(nfe, color=_INK, alpha=0.18, linewidth=0.8)
        if candidates:
            axes.plot(*zip(*candidates, strict=True), "o", color="C7", ms=3, alpha=0.6, label="candidates")
        axes.step(*zip(*trace, strict=True), where="post", color="C0", linewidth=2, label="best so far")
        axes.plot(*trace[0], "D", color="C1", ms=5, label="first scored")
        axes.set_xlabel("NFE (denoiser evaluations)")
        axes.set_ylabel(label(score))
        axes.figure.legend(**_BELOW)

    return chart(draw, f"Best {score} so far against NFE, from {trace[0][1]:.4g} to {trace[-1][1]:.4g}")


def agreement(points: Sequence[tuple[float, float]], best: tuple[float, float] | None, x: str, y: str) -> Markup:
    """What a judge says of candidates (`y`) against the score that was searched with (`x`); `best` is marked."""

    def draw(axes: Any) -> None:
        axes.plot(*zip(*points, strict=True), "o", color="C7", ms=4, alpha=0.6, label="candidates")
        if best is not None:
            axes.plot(*best, "*", color="C1", ms=12, label="chosen")
        axes.set_xlabel(label(x))
        axes.set_ylabel(label(y))
        axes.figure.legend(**_BELOW)

    return chart(draw, f"{y} of {len(points)} candidates against their {x}")


def lines(
    curves: Mapping[str, Sequence[tuple[float, Mapping[str, float]]]], x: str, y: str, doubling: bool = False
) -> Markup:
    """Curves of (x, {mean, low, high}), with bands where they are few; `doubling`: x on a logarithmic scale."""

    def draw(axes: Any) -> None:
        for number, (name, points) in enumerate(curves.items()):
            mean, low, high = ([value.get(each, value["mean"]) for _, value in points] for each in _BAND)
            band = (low, high) if len(curves) <= 4 else None
            draw_line(axes, [at for at, _ in points], mean, band, number, name, marked=len(points) < 12)
        if doubling:
            axes.set_xscale("log", base=2)
            if len(places := sorted({at for points in curves.values() for at, _ in points})) <= _FEW:
                apart = [at for i, at in enumerate(places) if i == 0 or at > _APART * places[i - 1]]
                axes.set_xticks(apart)
                axes.minorticks_off()
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.set_xlabel(label(x))
        axes.set_ylabel(label(y))
        if len(curves) > 1:
            axes.figure.legend(**_BELOW)

    return chart(draw, f"{y} against {x}: {', '.join(curves)}", 0.06 * len(curves))


def chart(draw: Callable[[Any], None], says: str, more_height: float = 0.0) -> Markup:
    """What `draw` draws on axes; `says` is read to those who do not see it."""
    says = one_line(says)
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": says}):  # so that no two charts of a page share an id
        figure = Figure(figsize=(4.8, 3.0 + more_height), layout="constrained")
        axes = figure.subplots()
        clean_axes(axes)
        axes.grid(alpha=0.15)
        draw(axes)
        axes.yaxis.set_major_locator(MaxNLocator(6))
        svg = svg_of(figure)
    svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg[svg.index("<svg") :], count=2)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = svg.replace(_INK, "currentColor").replace("<svg ", f'<svg role="img" aria-label="{escape(says)}" ', 1)
    return Markup(svg)
