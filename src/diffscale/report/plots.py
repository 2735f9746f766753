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
def _figure(path: Path, title: str, width: float, height: float, panels: int = 1) -> Iterator[list[Any]]:
    """Yields the axes of so many panels, side by side, of one scale; what is drawn is written as a PNG to `path`."""
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    every = list(figure.subplots(1, panels, sharex=True, sharey=True, squeeze=False)[0])
    for axes in every:
        clean_axes(axes)
    yield every
    heading = figure.suptitle("", fontsize=10)

    def fits(text: str) -> bool:
        set_text(heading, text)
        return bool(heading.get_window_extent().width <= 0.98 * figure.bbox.width)

    set_text(heading, fitting(title, fits))
    save(figure, path)


@contextmanager
def _plot(path: Path, title: str, xlabel: str, ylabel: str, width: float = 6.4) -> Iterator[Any]:
    """Yields axes; what is drawn on them is written as a PNG to `path`."""
    with _figure(path, title, width, 0.3 * width + 2.1) as (axes,):
        yield axes
        axes.set_xlabel(xlabel)
        axes.set_ylabel(label(ylabel))


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


def forest(
    rows: Mapping[str, Mapping[str, Sequence[Mapping[str, float]]]], panels: Sequence[str], title: str, path: Path,
    beyond: str = "",
) -> None:  # fmt: skip
    """Differences of one unit with their intervals beside a line at 0, a row a name, as a PNG at `path`.

    `rows`: from top to bottom, by name and mark (such as a budget) an estimate {mean, low, high} for each of `panels`,
    whose names stand below. An estimate that has a true `beyond` is drawn open, and `beyond` says what that means.
    """
    marks = list(dict.fromkeys(mark for by_mark in rows.values() for mark in by_mark))
    height = 1.5 + len(rows) * (0.12 + 0.15 * len(marks))
    with _figure(path, title, 1.6 + 3.4 * len(panels), height, len(panels)) as every:
        every[0].figure.get_layout_engine().set(w_pad=0.08)
        for panel, (axes, name) in enumerate(zip(every, panels, strict=True)):
            axes.axvline(0, color="#444444", linewidth=1)
            axes.grid(visible=False, axis="y")
            axes.set_xlabel(label(name))
            axes.xaxis.set_major_locator(MaxNLocator(6))
            for row, by_mark in enumerate(rows.values()):
                if row % 2:
                    axes.axhspan(row - 0.5, row + 0.5, color="#f3f3f3", linewidth=0, zorder=0)
                for mark, estimates in by_mark.items():
                    number, known = marks.index(mark), estimates[panel]
                    at, colour = row + 0.8 * ((number + 0.5) / len(marks) - 0.5), f"C{number % 10}"
                    axes.plot(
                        [known["low"], known["high"]], [at, at], color=colour, linewidth=1.4, solid_capstyle="butt"
                    )
                    _draw_mark(axes, [known["mean"]], [at], number, open=bool(known.get("beyond")))
        every[0].set_yticks(range(len(rows)), [label(name) for name in rows])
        every[0].set_ylim(len(rows) - 0.5, -0.5)
        for number, mark in enumerate(marks):
            _draw_mark(every[0], [], [], number, mark)
        if beyond:
            every[0].plot([], [], "o", ms=6, mfc="white", color="#444444", label=label(f"open: {beyond}"))
        every[0].figure.legend(loc="outside lower center", ncols=min(5, len(marks) + 1), fontsize=9, frameon=False)


def _draw_mark(axes: Any, x: ArrayLike, y: ArrayLike, number: int, name: str = "", open: bool = False) -> None:
    """Points of mark `number` of a plot, told apart from others by colour and shape."""
    colour = f"C{number % 10}"
    face = "white" if open else colour
    axes.plot(x, y, _MARKERS[number % len(_MARKERS)], ms=6, color=colour, mfc=face, label=label(name) if name else None)


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
