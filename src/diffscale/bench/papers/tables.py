"""The table of an item, beside the paper's own numbers, as Markdown and HTML, from its raw numbers alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from diffscale.bench.papers import numbers
from diffscale.bench.papers.figures import UNITS
from diffscale.bench.papers.numbers import Raw
from diffscale.bench.papers.recipe import Recipe, Setting, Table

_PLAIN = {"fid": "FID", "is": "IS"}


@dataclass(frozen=True)
class Grid:
    """A table: what it is of, its heads, and rows of texts as long."""

    title: str
    heads: list[str]
    rows: list[list[str]]


def grids(recipe: Recipe, setting: Setting, raw: Raw) -> list[Grid]:
    """The item's own table, that of its trainings, and the paper's where it prints one."""
    wanted = [setting.table] if setting.table is not None else _of_panels(setting)
    found = [_grid(table, raw) for table in wanted]
    if raw.get("trainings"):
        found.append(_trainings(raw["trainings"]))
    if recipe.printed is not None:
        rows = [[str(cell) for cell in row] for row in recipe.printed.rows]
        found.append(
            Grid(f"The paper's own numbers, of another model: {recipe.printed.of}", recipe.printed.columns, rows)
        )
    return found


def shown(value: dict[str, float], digits: int = 3) -> str:
    """Mean and interval."""
    if value["low"] == value["high"]:
        return f"{value['mean']:.{digits}f}"
    return f"{value['mean']:.{digits}f} [{value['low']:.{digits}f}, {value['high']:.{digits}f}]"


def _of_panels(setting: Setting) -> list[Table]:
    """Figures have their numbers in tables too: the measures of their panels, by part."""
    found = []
    for name, part in setting.parts.items():
        measures = [*part.sets, *part.judges]
        panels = [panel.y for panel in setting.panels if panel.part == name and panel.y in measures]
        if panels:
            columns = {y: UNITS.get(y, y).partition(" (")[0].partition(",")[0] for y in dict.fromkeys(panels)}
            found.append(Table(part=name, columns=columns))
    return found


def _grid(table: Table, raw: Raw) -> Grid:
    part = raw["parts"][table.part]
    first = next(iter(part["series"].values()))[0]
    cost = ["compute"] if table.cost else []
    rows = []
    for name, points in part["series"].items():
        for at in points:
            ratio = [f"{at['flops'] / first['flops']:.3g}"] if table.cost else []
            values = [_cell(raw, table.part, at, measure) for measure in table.columns]
            rows.append([name, f"{at['nfe']:,.0f}", *ratio, *values])
    models, count = numbers.models(raw, table.part), len(part["prompts"])
    title = f"{models}, {count} prompts, {count * part['repeats']} pictures a row; 95% intervals"
    return Grid(title, ["search", "NFE", *cost, *(_PLAIN.get(c, c) for c in table.columns.values())], rows)


def _trainings(trainings: Mapping[str, Any]) -> Grid:
    heads = ["training", "method", "base", "reward", "rows of data", "steps", "seconds in steps"]
    rows = [
        [name, one["method"], one["base"], " + ".join(one["reward"]) or "-", f"{one['rows']:,}", f"{one['steps']:,}",
         f"{one['seconds']:,.1f}"]
        for name, one in trainings.items()
    ]  # fmt: skip
    return Grid("Trainings", heads, rows)


def _cell(raw: Raw, part: str, at: Mapping[str, Any], measure: str) -> str:
    category = measure.partition("@")[2]
    if category and category not in raw["parts"][part]["categories"]:
        return "-"  # no prompt of it: of few prompts some categories have none
    return shown(numbers.summary(raw, part, at, measure))
