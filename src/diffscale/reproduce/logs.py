"""What trainings logged, kept beside an item's numbers, and the curves of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from diffscale.report.training import smoothed
from diffscale.reproduce.recipe import LogPanel
from diffscale.train.run.logs import FILE, read

_STYLES: Final = ("-", "--", "-.", ":")
_WINDOWS: Final = 40


def keep(training: Path, item: Path, name: str) -> dict[str, Any]:
    """Copy the log of the finished `training` into the folder of an item; what is to be known of it, for JSON."""
    result = json.loads((training / "result.json").read_text())
    file = "".join(c if c.isalnum() or c in "=.-" else "_" for c in name) + ".jsonl"
    (item / "trainings").mkdir(parents=True, exist_ok=True)
    shutil.copyfile(training / FILE, item / "trainings" / file)
    said = ("method", "base", "steps", "seconds", "rows")
    return {"log": file, **{key: result[key] for key in said}, "reward": result["reward"]["verifiers"]}


def of(item: Path, raw: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The rows of the logs that an item's numbers name, by training."""
    return {name: read(item / "trainings" / each["log"]) for name, each in raw.get("trainings", {}).items()}


def draw(axes: Any, logs: Mapping[str, Sequence[Mapping[str, Any]]], panel: LogPanel) -> None:
    """Curves of `panel`: the mean over windows of steps, and a band of the deviation within these."""
    for number, name in enumerate(panel.of):
        rows = logs[name]
        values = smoothed(rows, panel.y, _WINDOWS)
        if values is None:
            continue
        at, mean, deviation = values
        where = at + 1 if panel.x == "steps" else np.cumsum([row["seconds"] for row in rows])[at]
        colour = f"C{number % 10}"
        axes.fill_between(where, mean - deviation, mean + deviation, color=colour, alpha=0.13, linewidth=0)
        axes.plot(where, mean, _STYLES[number % 4], color=colour, lw=1.6, label=name)
    axes.set_xlabel("steps" if panel.x == "steps" else "seconds in steps")
    axes.set_ylabel(
        f"{panel.y}: mean of a window, band: one deviation\n(a window is 1/{_WINDOWS} of the steps)", fontsize=9
    )
    axes.set_title(panel.title, fontsize=10)
