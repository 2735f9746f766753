"""What trainings logged, kept beside an item's numbers, and the curves of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from diffscale.bench.papers import trained
from diffscale.bench.papers.recipe import LogPanel
from diffscale.report.training import smoothed
from diffscale.train.configs import TrainConfig
from diffscale.train.logs import FILE, read
from diffscale.train.methods.sharpen import placed

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


def of(
    item: Path, raw: Mapping[str, Any], trainings: Mapping[str, Mapping[str, Any]]
) -> dict[str, list[dict[str, Any]]]:
    """The rows of the logs that an item's numbers name, by training; `trainings` has the settings of each.

    Rows have `again`: whether the step was on samples that a step before it was on.
    """
    found = {}
    for name, each in raw.get("trainings", {}).items():
        settings = trained.config_of(trainings[name])
        rows = read(item / "trainings" / each["log"])
        found[name] = [{**row, "again": _again(settings, row["step"])} for row in rows]
    return found


def _again(settings: TrainConfig, step: int) -> bool:
    if settings.method != "sharpen-rlhf":
        return False
    first = (step - 1) * settings.gradient_accumulation_steps
    return placed(settings, first)[1] > 0


def label(name: str, panel: LogPanel) -> str:
    """What a training is called in a panel, whose title may say the rest of its name."""
    return name.removesuffix(f", {panel.title}")


def draw(axes: Any, logs: Mapping[str, Sequence[Mapping[str, Any]]], panel: LogPanel, looks: Mapping[str, int]) -> None:
    """Curves of `panel`: the mean over windows of steps, and a band of the deviation within these; a number for the
    looks of each label."""
    for name in panel.of:
        rows, number = logs[name], looks[label(name, panel)]
        values = smoothed(rows, panel.y, _WINDOWS)
        if values is None:
            continue
        at, mean, deviation = values
        where = at + 1 if panel.x == "steps" else np.cumsum([row["seconds"] for row in rows])[at]
        colour = f"C{number % 10}"
        axes.fill_between(where, mean - deviation, mean + deviation, color=colour, alpha=0.13, linewidth=0)
        axes.plot(where, mean, _STYLES[number % 4], color=colour, lw=1.6, label=label(name, panel))
    axes.set_xlabel("steps" if panel.x == "steps" else "seconds in steps")
    axes.set_ylabel(
        f"{panel.y}: mean of a window, band: one deviation\n(a window is 1/{_WINDOWS} of the steps)", fontsize=9
    )
    axes.set_title(panel.title, fontsize=10)
