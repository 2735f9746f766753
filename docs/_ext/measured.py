"""Numbers that are committed beside these pages: what searches found on 60 prompts, what they are worth on tapes, and
how verifiers agree with the judge."""

import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from diffscale.report.plots import clean_axes, draw_line
from diffscale.report.text import save
from diffscale.tape.curves import best_of
from diffscale.tape.tape import load_tape
from diffscale.tape.verifiers import finals

DOCS = Path(__file__).parents[1]
TAPE = DOCS.parent / "benchmarks" / "tapes" / "shapes-flux-suite.tape"
WORTH = """How many times its NFE, and its seconds, random search needs for the same CLIPScore, on 200 or 300 prompts;
and the held-out judge less that of random search at equal NFE ([how](../../frontier.md)):"""
BEST_OF = """The judge of the best of so many candidates of `shapes-flux`, chosen by this verifier and by the judge,
on 300 prompts."""
COUNTS = (1, 2, 4, 8, 16, 32, 64)
Points = dict[str, list[tuple[float, float, float, float, float, str, str]]]
"""By search: NFE, judge, its low and high end, CLIPScore, and the cells of judge and difference."""


def rows(path: str, start: str) -> list[list[str]]:
    """The cells of the rows of a Markdown table whose header begins with `start`; ValueError if it is not there."""
    text = (DOCS / path).read_text(encoding="utf-8")
    table = text[text.index(f"| {start} |") :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table if line.startswith("|")]


@cache
def searches() -> Points:
    """What all searches found on 60 prompts, and what a few of them found there with 1280 NFE."""
    found: Points = {}
    for name, nfe, judge, minus, *score in rows("quality_per_nfe/all-60-prompts.md", "search"):
        if score and score[0]:
            middle, low, high = map(float, re.findall(r"-?\d+\.\d+", judge))
            point = (float(nfe), middle, low, high, float(score[0].strip(" |")), judge, minus)
            found.setdefault(name.strip("`"), []).append(point)
    for by, name, nfe, _, judge, minus, score, *_ in rows("quality_per_nfe/60-prompts.md", "verifier"):
        if by == "clip" and float(nfe) > found[name][-1][0]:
            middle, low, high = map(float, re.findall(r"-?\d+\.\d+", judge))
            found[name].append((float(nfe), middle, low, high, float(score), judge, minus))
    return found


def search_table(curves: Points, own: list[str]) -> list[str]:
    """The rows of a search."""
    lines = ["| | NFE | CLIPScore | judge | judge, minus random search |", "|---|---|---|---|---|"]
    for name in own:
        for nfe, _, _, _, score, judge, minus in curves[name]:
            lines.append(f"| `{name}` | {nfe:.0f} | {score:.3f} | {judge} | {minus} |")
    return lines


def draw_search(curves: Points, own: list[str], path: Path) -> None:
    """CLIPScore and judge against NFE, beside random search."""
    figure = Figure(figsize=(7.6, 2.8), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2)
    for number, name in enumerate(dict.fromkeys(["random", *own])):
        nfe, judge, low, high, score = (np.array(column) for column in list(zip(*curves[name], strict=True))[:5])
        draw_line(left, nfe, score, None, number, name)
        draw_line(right, nfe, judge, (low, high), number, name)
    for axes, label in ((left, "CLIPScore, searched by"), (right, "judge, held out")):
        clean_axes(axes)
        axes.set_xscale("log", base=2)
        ticks = [80, 160, 320, 640, 1280]
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.set_xlabel("NFE")
        axes.set_ylabel(label)
    left.legend(frameon=False, fontsize=8)
    save(figure, path)


@cache
def frontier() -> dict[tuple[str, str], list[list[str]]]:
    """By model and search, what tapes tell of searches by CLIPScore: a row for each budget.

    Of a model with two tapes it is that with more budgets.
    """
    files = {}
    for kind in ("suite", "pools"):
        for file in sorted((DOCS / "frontier").glob(f"*-{kind}-*.md")):
            files[file.name.partition(f"-{kind}")[0]] = file.name
    found: dict[tuple[str, str], list[list[str]]] = {}
    for model, file_name in files.items():
        for cells in rows(f"frontier/{file_name}", "verifier"):
            if cells[0] == "clip":
                found.setdefault((model, cells[2].strip("`")), []).append(cells)
    return found


def worth(name: str, path: Path) -> list[str]:
    """How many times its NFE and seconds a search is worth, where tapes tell; drawn at `path`."""
    own = {at: budgets for at, budgets in frontier().items() if at[1].split()[0] == name}
    if not own:
        return []
    lines = []
    for (model, search), budgets in own.items():
        for _, nfe, _, _, times, _, _, judge, _, seconds in budgets:
            lines.append(f"| `{model}` | `{search}` | {nfe} | {times} | {seconds.strip(' |')} | {judge} |")
    shown = min((search for _, search in own), key=len)  # with the fewest settings, where there are several
    _draw_worth({at[0]: budgets for at, budgets in own.items() if at[1] == shown}, path)
    head = ["", "## What it is worth", "", WORTH, "", f"![{shown}: worth against NFE]({path.name})", ""]
    head += ["| model | search | NFE | times the NFE | times the seconds | judge |", "|---|---|---|---|---|---|"]
    return [*head, *lines]


def _draw_worth(models: dict[str, list[list[str]]], path: Path) -> None:
    """How many times its NFE a search is worth, and the judge less that of random search, against the budget."""
    figure = Figure(figsize=(7.6, 2.8), dpi=110, layout="constrained")
    panels = figure.subplots(1, 2)
    for number, (model, budgets) in enumerate(models.items()):
        nfe = [float(cells[1]) for cells in budgets]
        for axes, column in zip(panels, (4, 7), strict=True):
            middle, low, high = (
                [float(re.findall(r"[-+]?\d+\.\d+", cells[column])[each]) for cells in budgets] for each in range(3)
            )
            draw_line(axes, nfe, middle, (low, high), number, model)
    for axes, label, same in zip(
        panels, ("times the NFE of random search", "judge, minus random search"), (1, 0), strict=True
    ):
        clean_axes(axes)
        axes.axhline(same, color="grey", linewidth=0.8)
        axes.set_xscale("log", base=2)
        ticks = [80, 160, 320, 640]
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.set_xlabel("NFE")
        axes.set_ylabel(label, fontsize=9)
    panels[0].legend(frameon=False, fontsize=7)
    save(figure, path)


def verifier(name: str, path: Path) -> list[str]:
    """How a verifier agrees with the judge, and what is found by following it."""
    lines: list[str] = []
    for cells in rows("verifiers/verifier_agreement.md", "verifier"):
        if cells[0].split()[0] == name:
            agrees = f"Rank correlation with the exact judge within a prompt's pictures, `{cells[0]}`"
            lines.append(f"* {agrees}: {cells[-1].strip(' |')}.")
    for cells in rows("verifiers/verifier_hacking.md", "verifier"):
        if cells[0] == name:
            rose = f"its own score {cells[1]} standard deviations up, the judge from {cells[2]} to {cells[3]}"
            lines.append(f"* The best of 256 by it: {rose}; hacked: {cells[-1].strip(' |')}.")
    tape = _tape()
    if name in tape.scores:
        _draw_verifier(tape, name, path)
        own, step = (f"{tape.seconds[each] * 1000:.1f}" for each in (name, "step"))
        lines.append(f"* Its Shapes network takes {own} ms a picture on one core, a step of `shapes-flux` {step}.")
        lines += ["", f"![The judge against the number of candidates, chosen by {name}]({name}.png)", "", BEST_OF]
    more = "[agreement](../../verifiers/verifier_agreement.md) and [hacking](../../verifiers/verifier_hacking.md)"
    return ["## Measured", "", *lines, "", f"All verifiers: {more}."] if lines else []


@cache
def _tape() -> Any:
    return load_tape(TAPE)


def _draw_verifier(tape: Any, name: str, path: Path) -> None:
    judged = finals(tape, "shapes-judge")
    figure = Figure(figsize=(5, 2.8), dpi=110, layout="constrained")
    axes = figure.subplots()
    for number, each in enumerate(dict.fromkeys([name, "shapes-judge"])):
        curve = [best_of(finals(tape, each), count, judged).mean() for count in COUNTS]
        draw_line(axes, COUNTS, curve, None, number, "the judge itself" if each == "shapes-judge" else each)
    clean_axes(axes)
    axes.set_xscale("log", base=2)
    axes.set_xticks(COUNTS, [str(count) for count in COUNTS])
    axes.set_xlabel("candidates")
    axes.set_ylabel("judge")
    axes.legend(frameon=False, fontsize=8)
    save(figure, path)
