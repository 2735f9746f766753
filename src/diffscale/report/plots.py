"""Plots of searches and of trainings, in one style that is readable in grey; to be drawn within `text.drawing`."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from diffscale.report.text import fitting, label, save, set_text

matplotlib.use("Agg")

_STYLES: Final = ("-", "--", "-.", ":")
_MARKERS: Final = "osD^vP*X<>"
_WINDOWS: Final = 100  # points of a smoothed curve


@contextmanager
def _plot(path: Path, title: str, xlabel: str, ylabel: str, width: float = 6.4) -> Iterator[Any]:
    """Yields axes; what is drawn on them is written as a PNG to `path`."""
    figure = Figure(figsize=(width, 0.3 * width + 2.1), dpi=150, layout="constrained")
    axes = figure.subplots()
    yield axes
    axes.set_xlabel(xlabel)
    axes.set_ylabel(label(ylabel))
    heading = figure.suptitle("", fontsize=10)

    def fits(text: str) -> bool:
        set_text(heading, text)
        return bool(heading.get_window_extent().width <= 0.98 * figure.bbox.width)

    set_text(heading, fitting(title, fits))
    clean_axes(axes)
    save(figure, path)


def clean_axes(axes: Any) -> None:
    """A light grid, and no frame at the top and on the right."""
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def draw_line(
    axes: Any, x: ArrayLike, mean: ArrayLike, band: tuple[ArrayLike, ArrayLike] | None, number: int, name: str = "",
    marked: bool = True,
) -> None:  # fmt: skip
    """Line `number` of a plot, told apart from others by colour, dashes and marks, with its `band` from low to high."""
    colour = f"C{number % 10}"
    if band is not None:
        axes.fill_between(x, *band, color=colour, alpha=0.13, linewidth=0)
    marker = _MARKERS[number % len(_MARKERS)] if marked else None
    axes.plot(x, mean, _STYLES[number % 4], marker=marker, ms=5, lw=1.6, color=colour, label=label(name))


def scaling(trace: Sequence[tuple[int, float]], first: int, title: str, verifier: str, path: Path) -> None:
    """Best score so far against NFE, as a PNG at `path`; `first` is the NFE of the first sample."""
    nfe, score = zip(*trace, strict=True)
    with _plot(path, title, "NFE (denoiser evaluations)", f"best {verifier} score so far") as axes:
        axes.step(nfe, score, where="post", color="#1f5fa8", linewidth=2)
        axes.plot(nfe[:-1] or nfe, score[:-1] or score, "o", color="#1f5fa8", markersize=4.5)
        axes.axhline(score[0], color="#888888", linewidth=1, linestyle="--")
        axes.annotate("first sample", (nfe[-1], score[0]), ha="right", va="bottom", color="#666666", fontsize=9)
        if nfe[-1] > first:
            axes.set_xscale("log", base=2)
            axes.set_xlim(first * 0.9, nfe[-1] * 1.08)
        _set_doubling_ticks(axes, first, nfe[-1])
        axes.yaxis.set_major_locator(MaxNLocator(6))


def _set_doubling_ticks(axes: Any, first: float, last: float) -> None:
    """Ticks at `first` NFE and its doubles up to `last`; every second one, and so on, where they are many."""
    count = int(np.log2(max(1.0, last / first)) + 0.01) + 1
    ticks = [first * 2.0**i for i in range(0, count, 1 + count // 12)]
    axes.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])
    axes.minorticks_off()


def curves(
    lines: Mapping[str, Sequence[tuple[float, Mapping[str, float]]]], ylabel: str, title: str, path: Path
) -> None:
    """Lines of (NFE, {mean, low, high}) with their bands, as a PNG at `path`.

    More than four lines are drawn without bands.
    """
    crowded = len(lines) > 4  # bands of more lines hide each other
    with _plot(path, title, "NFE a prompt (denoiser evaluations)", ylabel, 8.2 if crowded else 6.8) as axes:
        for number, (name, points) in enumerate(lines.items()):
            mean, low, high = ([value[each] for _, value in points] for each in ("mean", "low", "high"))
            band = None if crowded else (low, high)
            draw_line(axes, [nfe for nfe, _ in points], mean, band, number, name, marked=len(points) < 12)
        axes.set_xscale("log", base=2)
        every = [nfe for points in lines.values() for nfe, _ in points]
        _set_doubling_ticks(axes, min(every), max(every))
        if crowded:
            axes.figure.legend(loc="outside right center", fontsize=9, frameon=False)
        else:
            axes.legend(fontsize=8, frameon=False)


def training_curve(lines: Sequence[dict[str, Any]], name: str, title: str, path: Path) -> bool:
    """The mean and the deviation of `name` over windows of steps, as a PNG at `path`; whether there was any.

    `lines`: of log.jsonl. A window is a hundredth of the steps that have a value. The deviation is that over the
    window's steps and, where lines have `{name}_std`, within them: that of paper B's figure 6.
    """
    values = smoothed(lines, name, _WINDOWS)
    if values is None:
        return False
    last, mean, deviation = values
    steps = [lines[i]["step"] for i in last]
    with _plot(path, title, "step", f"{name}: mean and deviation") as axes:
        draw_line(axes, steps, mean, (mean - deviation, mean + deviation), 0, marked=len(steps) < 12)
    return True


def smoothed(
    lines: Sequence[Mapping[str, Any]], name: str, windows: int
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]] | None:
    """The last line's number, the mean and the deviation [W] of `name` in each of at most `windows` parts.

    `lines`: of log.jsonl; those without a value are passed over, None if all are. The deviation is that over the
    part's lines and, where lines have `{name}_std`, within them.
    """
    known = [i for i, line in enumerate(lines) if line.get(name) is not None]
    if not known:
        return None
    parts = np.array_split(np.array(known), min(windows, len(known)))
    means, deviations = [], []
    for part in parts:
        values = np.array([lines[i][name] for i in part])
        within = np.array([lines[i].get(f"{name}_std", 0.0) for i in part])
        means.append(values.mean())
        deviations.append(np.sqrt(values.var() + np.square(within).mean()))
    return np.array([part[-1] for part in parts]), np.array(means), np.array(deviations)
