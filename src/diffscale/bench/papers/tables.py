"""The tables of an item, beside the paper's own numbers, from its raw numbers alone."""

from dataclasses import dataclass

from diffscale.bench.papers import numbers
from diffscale.bench.papers.figures import UNITS
from diffscale.bench.papers.numbers import Measured, Raw
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
    made = [_grid(table, raw) for table in wanted]
    if raw.get("trainings"):
        heads = ["training", "method", "base", "reward", "rows of data", "steps", "seconds in steps"]
        rows = [
            [name, one["method"], one["base"], " + ".join(one["reward"]) or "-", f"{one['rows']:,}",
             f"{one['steps']:,}", f"{one['seconds']:,.1f}"]
            for name, one in raw["trainings"].items()
        ]  # fmt: skip
        made.append(Grid("Trainings", heads, rows))
    if (printed := recipe.printed) is not None:
        rows = [[str(cell) for cell in row] for row in printed.rows]
        made.append(Grid(f"The paper's own numbers, of another model: {printed.of}", printed.columns, rows))
    return made


def _of_panels(setting: Setting) -> list[Table]:
    """Figures have their numbers in tables too: the measures of their panels, by part."""
    made = []
    for name, part in setting.parts.items():
        panels = [panel.y for panel in setting.panels if panel.part == name and panel.y in (*part.sets, *part.judges)]
        if panels:
            columns = {y: UNITS.get(y, y).partition(" (")[0].partition(",")[0] for y in dict.fromkeys(panels)}
            made.append(Table(part=name, columns=columns))
    return made


def _grid(table: Table, raw: Raw) -> Grid:
    part = raw["parts"][table.part]
    points = [(name, each) for name in part["series"] for each in numbers.points(raw, table.part, name)]
    first = points[0][1].row
    rows = []
    for name, each in points:
        ratio = [f"{each.row['flops'] / first['flops']:.3g}"] if table.cost else []
        rows.append([name, f"{each.row['nfe']:,.0f}", *ratio, *(_cell(each, measure) for measure in table.columns)])
    count, cost = len(part["prompts"]), ["compute"] if table.cost else []
    pictures = f"{count} prompts, {count * part['repeats']} pictures a row"
    title = f"{numbers.models(raw, table.part)}, {pictures}; 95% intervals"
    return Grid(title, ["search", "NFE", *cost, *(_PLAIN.get(c, c) for c in table.columns.values())], rows)


def _cell(point: Measured, measure: str) -> str:
    """Mean and interval."""
    category = measure.partition("@")[2]
    if category and category not in point.part["categories"]:
        return "-"  # no prompt of it: of few prompts some categories have none
    value = point.summary(measure)
    mean = f"{value['mean']:.3f}"
    return mean if value["low"] == value["high"] else f"{mean} [{value['low']:.3f}, {value['high']:.3f}]"
