"""The plots of an item, as PNG and SVG, drawn from its raw numbers alone; readable in grey."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from PIL import Image

from diffscale._util.files import inside
from diffscale._util.pixels import pixels, read_picture
from diffscale.bench.papers import numbers
from diffscale.bench.papers.numbers import Raw
from diffscale.bench.papers.recipe import LogPanel, Panel, Setting
from diffscale.report.pictures import enlarge
from diffscale.report.plots import clean_axes, draw_line, smoothed
from diffscale.report.text import one_line, save

# The same numbers are to give the same file.
matplotlib.rcParams["svg.hashsalt"] = "diffscale"

_HATCHES: Final = ("", "//", "..", "xx", "\\\\", "++")
UNITS: Final = {
    "fid": "FID, lower is better (features of Inception)",
    "is": "Inception Score",
    "precision": "precision (share of pictures)",
    "recall": "recall (share of real pictures)",
    "precision k=5": "precision by 5 neighbours (share of pictures)",
    "recall k=5": "recall by 5 neighbours (share of real pictures)",
    "diversity": "diversity (mean 1 - cos between pictures of a prompt)",
    "shapes-judge": "judge (0 to 1, held out)",
    "clip": "CLIPScore (0 to 2.5)",
    "aesthetic": "aesthetic score",
    "image_reward": "ImageReward",
    "pick_score": "PickScore",
    "shapes-grader": "grader, overall (0 to 10)",
    "llm_grader": "LLM grader, overall (0 to 10)",
    "inception": "probability of the class (Inception)",
    "dino_linear": "DINO's logit of the class",
    "clip_zeroshot": "CLIP's zero-shot logit of the class",
    "clip_ssl": "cosine of CLIP's features, early and final",
    "dino_ssl": "cosine of DINO's features, early and final",
    "siglip_ssl": "cosine of SigLIP's features, early and final",
}
"""What axes call measures."""
_WINDOWS: Final = 40  # of the curve of a log
_COSTS: Final = {"nfe": "NFE a sample (denoiser evaluations)", "flops": "GFLOPs a sample (denoiser)"}
_WHOLE: Final = "GFLOPs a sample (denoiser, decoder and verifier)"


def draw(raw: Raw, setting: Setting, folder: Path) -> list[str]:
    """Draw what `setting` shows into `folder`, as `figure.png` and `figure.svg`; the names of the files.

    `raw` with `logs` by training, where `setting` shows any, see `trainings.read_logs`.
    """
    if setting.view == "strips":
        _strips(raw, setting, folder / "figure.png")
        return ["figure.png"]
    count = len(setting.panels) + len(setting.logs)
    if not count:
        return []
    columns = min(count, 4 if setting.view == "curves" and count == 4 else 3)
    rows = -(-count // columns)
    figure = Figure(figsize=(5.2 * columns, 4.0 * rows + 0.6), dpi=110, layout="constrained")
    every = figure.subplots(rows, columns, squeeze=False).ravel()
    # A series or training looks alike in all panels, and unlike any other.
    series = (name for panel in setting.panels for name in _series(raw, panel))
    trained = (_log_label(name, panel) for panel in setting.logs for name in panel.of)
    styles = {name: i for i, name in enumerate(dict.fromkeys((*series, *trained)))}
    curves = partial(_curves, styles=styles)
    kinds: dict[str, Callable[..., None]] = {"curves": curves, "table": curves, "bars": _bars, "scatter": _scatter}
    for axes, panel in zip(every, setting.panels, strict=False):
        kind = _scatter if panel.y and panel.x not in _COSTS else kinds[setting.view]
        kind(axes, raw, panel)
    for axes, log in zip(every[len(setting.panels) :], setting.logs, strict=False):
        draw_logs(axes, raw["logs"], log, styles)
    for axes in every[:count]:
        clean_axes(axes)
    for axes in every[count:]:
        axes.set_visible(False)
    handles: dict[str, Any] = {}
    for axes in every:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if handles:
        figure.legend(
            handles.values(), handles.keys(), loc="outside lower center", ncols=min(4, 2 * columns, len(handles)),
            frameon=False, fontsize=9,
        )  # fmt: skip
    save(figure, folder / "figure.png", folder / "figure.svg", metadata={"Date": None})
    return ["figure.png", "figure.svg"]


def _label(panel: Panel) -> str:
    return _gain(panel) if panel.relative else panel.label or UNITS.get(panel.y, panel.y)


def _gain(panel: Panel) -> str:
    name = (panel.label or UNITS.get(panel.y, panel.y)).partition(" (")[0].partition(",")[0]
    return f"gain in {name}{' (%)' if panel.relative else ''}"


def _series(raw: Raw, panel: Panel) -> list[str]:
    return panel.only or list(raw["parts"][panel.part]["series"])


def _curves(axes: Any, raw: Raw, panel: Panel, styles: Mapping[str, int]) -> None:
    costs: list[float] = []
    drawn: list[tuple[float, float]] = []
    for name in _series(raw, panel):
        points = numbers.points(raw, panel.part, name)
        x = [point.row[panel.x] / (1e9 if panel.x == "flops" else 1) for point in points]
        if panel.relative:
            values = [point.gain(points[0], panel.y, True) for point in points]
        else:
            values = [point.summary(panel.y) for point in points]
        mean, low, high = ([value[end] for value in values] for end in ("mean", "low", "high"))
        draw_line(axes, x, mean, (low, high), styles[name], name)
        costs += x
        drawn += zip(x, mean, strict=True)
    if panel.frontier:
        best = frontier(drawn, panel.y in numbers.LOWER)
        style = {"drawstyle": "steps-post", "color": "black", "lw": 3, "alpha": 0.3}
        axes.plot(*zip(*best, strict=True), label="frontier of all", **style)
    axes.set_xscale("log", base=2 if panel.x == "nfe" else 10)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.4g}"))
    if panel.x == "nfe":
        doubled = [min(costs) * 2**i for i in range(20)]
        axes.set_xticks([cost for cost in doubled if cost <= 1.05 * max(costs)])
    axes.minorticks_off()
    whole = panel.x == "flops" and raw["parts"][panel.part].get("cost") == "search"
    axes.set_xlabel(_WHOLE if whole else _COSTS[panel.x])
    axes.set_ylabel(_label(panel), fontsize=9)
    axes.set_title(f"{panel.part}: {numbers.models(raw, panel.part)}", fontsize=10)


def frontier(points: Sequence[tuple[float, float]], lower: bool) -> list[tuple[float, float]]:
    """Those of `points` (cost, value) that are better than all cheaper ones, by cost, drawn on to the largest cost.

    `lower`: whether less is better.
    """
    best: list[tuple[float, float]] = []
    for cost, value in sorted(points, key=lambda point: (point[0], point[1] if lower else -point[1])):
        if not best or (value < best[-1][1] if lower else value > best[-1][1]):
            best.append((cost, value))
    return [*best, (max(cost for cost, _ in points), best[-1][1])]


def _bars(axes: Any, raw: Raw, panel: Panel) -> None:
    """Gains of the last points of each series over their first; a bar a series."""
    names = _series(raw, panel)
    for number, name in enumerate(names):
        points = numbers.points(raw, panel.part, name)
        value = points[-1].gain(points[0], panel.y, panel.relative)
        ends = [[value["mean"] - value["low"]], [value["high"] - value["mean"]]]
        shade = str(0.35 + 0.5 * number / max(1, len(names) - 1))
        axes.bar(
            number, value["mean"], yerr=ends, color=shade, edgecolor="black", hatch=_HATCHES[number % 6], capsize=3,
            label=f"searched by {name}",
        )  # fmt: skip
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xticks([])
    axes.set_ylabel(_gain(panel), fontsize=9)


def _scatter(axes: Any, raw: Raw, panel: Panel) -> None:
    pairs = raw["parts"][panel.part]["pairs"]
    one, other = pairs[panel.x], pairs[panel.y]
    axes.plot(np.ravel(one), np.ravel(other), "o", ms=2.5, alpha=0.35, color="#333333")
    values = numbers.within(one, other)
    mean = float(values.mean()) if len(values) else 0.0
    axes.set_xlabel(UNITS.get(panel.x, panel.x))
    axes.set_ylabel(UNITS.get(panel.y, panel.y))
    axes.set_title(f"{panel.part}: rank correlation within prompts {mean:+.2f}", fontsize=10)


def _strips(raw: Raw, setting: Setting, path: Path) -> None:
    """Rows of a prompt each: growing steps left, growing search right, as the series stand in the recipe."""
    strips: list[tuple[str, list[Image.Image], list[str]]] = []
    for name, part in raw["parts"].items():
        every = [(series, row) for series, rows in part["series"].items() for row in rows]
        captions = [f"{one_line(series, 30)}\n{row['nfe']:,.0f} NFE" for series, row in every]
        for number, prompt in enumerate(part["prompts"][: setting.parts[name].strips]):
            home, raw_file = path.parent / "pictures", path.with_name("raw.json")
            files = [inside(home, row["pictures"][number], raw_file) for _, row in every]
            found = (read_picture(file, pixels, f"{file} cannot be read ({{why}}).") for file in files)
            pictures = [enlarge(Image.fromarray(each)) for each in found]
            strips.append((f"{part['model']}: {prompt}", pictures, captions))
    most = max((len(pictures) for _, pictures, _ in strips), default=1)
    figure = Figure(figsize=(1.5 * most, 1.95 * len(strips)), dpi=110, layout="constrained")
    lines = figure.subfigures(len(strips), 1, squeeze=False)[:, 0]
    for line, (title, pictures, captions) in zip(lines, strips, strict=True):
        line.suptitle(one_line(title, 150), x=0.01, ha="left", fontsize=8, weight="bold")
        every = line.subplots(1, most, squeeze=False).ravel()
        for axes in every:
            axes.axis("off")
        for axes, picture, caption in zip(every, pictures, captions, strict=False):
            axes.imshow(np.asarray(picture))
            axes.set_title(caption, fontsize=6.5)
    save(figure, path)


def _log_label(name: str, panel: LogPanel) -> str:
    """What a training is called in a panel, whose title may say the rest of its name."""
    return name.removesuffix(f", {panel.title}")


def draw_logs(
    axes: Any, logs: Mapping[str, Sequence[Mapping[str, Any]]], panel: LogPanel, styles: Mapping[str, int]
) -> None:
    """Curves of `panel`: the mean over windows of steps, and a band of the deviation within these; `styles`: a number
    for the style of each label."""
    for name in panel.of:
        label, values = _log_label(name, panel), smoothed(logs[name], panel.y, _WINDOWS)
        if values is not None:
            last, mean, deviation = values
            x = last + 1 if panel.x == "steps" else np.cumsum([row["seconds"] for row in logs[name]])[last]
            draw_line(axes, x, mean, (mean - deviation, mean + deviation), styles[label], label, False)
    axes.set_xlabel("steps" if panel.x == "steps" else "seconds in steps")
    axes.set_ylabel(
        f"{panel.y}: mean of a window, band: one deviation\n(a window is 1/{_WINDOWS} of the steps)", fontsize=9
    )
    axes.set_title(panel.title, fontsize=10)
