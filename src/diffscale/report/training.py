"""Curves of a training: its loss, and its rewards with mean and deviation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

matplotlib.use("Agg")

_WINDOWS = 100  # points of a smoothed curve


def smoothed(
    lines: Sequence[Mapping[str, Any]], name: str, windows: int
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]] | None:
    """The last line's number, the mean and the deviation [W] of `name` in each of at most `windows` parts.

    `lines`: of log.jsonl; those without a value are passed over, None if all are. The deviation is that over the
    part's lines and, where lines have `{name}_std`, within them.
    """
    kept = [i for i, line in enumerate(lines) if line.get(name) is not None]
    if not kept:
        return None
    parts = np.array_split(np.array(kept), min(windows, len(kept)))
    means, deviations = [], []
    for part in parts:
        values = np.array([lines[i][name] for i in part])
        within = np.array([lines[i].get(f"{name}_std", 0.0) for i in part])
        means.append(values.mean())
        deviations.append(np.sqrt(values.var() + np.square(within).mean()))
    return np.array([part[-1] for part in parts]), np.array(means), np.array(deviations)


def curve(lines: Sequence[dict[str, Any]], name: str, title: str, path: Path) -> bool:
    """The mean and the deviation of `name` over windows of steps, as a PNG at `path`; whether there was any.

    `lines`: of log.jsonl. A window is a hundredth of the steps that have a value. The deviation is that over the
    window's steps and, where lines have `{name}_std`, within them: that of paper B's figure 6.
    """
    values = smoothed(lines, name, _WINDOWS)
    if values is None:
        return False
    at, mean, deviation = values
    steps = np.array([line["step"] for line in lines])[at]
    figure = Figure(figsize=(6.4, 4), dpi=150, layout="constrained")
    axes = figure.subplots()
    axes.fill_between(steps, mean - deviation, mean + deviation, color="#1f5fa8", alpha=0.18, linewidth=0)
    axes.plot(steps, mean, color="#1f5fa8", linewidth=2, marker="o" if len(steps) < 12 else None, markersize=4)
    axes.set_xlabel("step")
    axes.set_ylabel(f"{name}: mean and deviation")
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)
    return True
