"""`reproduction.html`: all items that were run, with what was expected, what was found, and the verdicts.

Built from the files of the runs and the recipes alone. The page is self-contained but for the pictures beside it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, Final

from diffscale.errors import DiffscaleError
from diffscale.reproduce import claims, figures, logs, tables
from diffscale.reproduce import recipe as recipes
from diffscale.reproduce.recipe import Claim, Recipe, Setting
from diffscale.reproduce.run import made_of
from diffscale.reproduce.verdicts import LEVEL, Evidence, decide

PAGE: Final = "reproduction.html"
_STYLE: Final = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; color: #222; }
h1, h2 { line-height: 1.2 } h2 { border-top: 1px solid #ccc; padding-top: 1em; margin-top: 2em }
table { border-collapse: collapse; margin: 1em 0; font-size: 13px } caption { text-align: left; font-weight: 600 }
td, th { border: 1px solid #ccc; padding: 3px 8px; text-align: left; vertical-align: top }
th { background: #f3f3f3 } img { max-width: 100% } .wide { overflow-x: auto }
.verdict { font-weight: 600; white-space: nowrap } .stale { background: #fff0c2; padding: 0.5em 1em }
.note { color: #555; font-size: 13px }
"""
_INTRODUCTION: Final = f"""
Tables and figures of papers, run again from the recipes of diffscale. Each claim is tested on differences between
pictures of the same prompts: means over prompts by the paired t-test, metrics of all pictures together (FID, IS,
precision, recall) by the jackknife over groups of prompts with Student's t. Claims of no effect are tested by
equivalence (TOST) or non-inferiority with the margin that is stated, trends in a training by the slope over blocks of
its steps. One training stands for its method: tests are over prompts and steps, not over seeds. Of claims of several
parts all must hold. A claim does not hold where the opposite is significant. All p-values are Holm-corrected over this
page, both directions counted: the chance of one wrong verdict on it is at most {LEVEL:.0%}. Intervals have 95% each,
without correction.
""".strip()


@dataclass(frozen=True)
class Item:
    """A recipe, the setting that its numbers were made with, and these, with `logs` of trainings."""

    name: str
    recipe: Recipe
    setting: Setting
    raw: dict[str, Any]
    stale: bool


def keep(folder: Path, name: str, recipe: Recipe, setting: Setting, options: dict[str, Any]) -> None:
    """Write beside the raw numbers what they were made with, so that the page can be built from files.

    `options`: what `recipe.resolved` was given besides the recipe.
    """
    what = {"options": options, "recipe": recipe.model_dump(mode="json"), "setting": setting.model_dump(mode="json")}
    (folder / name / "recipe.json").write_text(json.dumps(what, indent=1, ensure_ascii=False) + "\n")


def items(folder: Path) -> list[Item]:
    """All items that have numbers in `folder`.

    Where the recipe of today, with the options of the run, asks for these very numbers, it also says how they are shown
    and judged; else they are stale, and shown by the recipe that made them.
    """
    found = []
    known = recipes.names()
    present = {path.parent.name for path in folder.glob("*/raw.json")}
    for name in [*(n for n in known if n in present), *sorted(present - set(known))]:
        raw = json.loads((folder / name / "raw.json").read_text())
        raw["logs"] = logs.of(folder / name, raw)
        held = json.loads((folder / name / "recipe.json").read_text())
        recipe, setting = Recipe(**held["recipe"]), Setting(**held["setting"])
        today = recipes.load(name) if name in known else None
        now = None if today is None else recipes.resolved(today, **held["options"])
        stale = now is None or made_of(now) != raw["made_of"]
        if today is not None and now is not None and not stale:
            recipe, setting = today, now
        found.append(Item(name, recipe, setting, raw, stale))
    return found


def judged(every: Sequence[Item]) -> list[tuple[Item, Claim, Evidence, str, float]]:
    """All claims of a page with evidence, verdict and corrected p-value."""
    found = [(item, claim) for item in every for claim in item.setting.claims.values()]
    evidence = [claims.judged(claim, item.raw) for item, claim in found]
    verdicts = decide(evidence)
    return [
        (item, claim, each, verdict, p)
        for (item, claim), each, (verdict, p) in zip(found, evidence, verdicts, strict=True)
    ]


def build(folder: Path) -> Path:
    """Draw all items in `folder` and write tables, `verdicts.json` and the page; raises DiffscaleError if none is."""
    every = items(folder)
    if not every:
        raise DiffscaleError(f"{folder} holds no results: run `diffscale reproduce A.figure1 --output {folder}`.")
    verdicts = judged(every)
    sections = []
    for item in every:
        files = figures.draw(item.raw, item.setting, folder / item.name)
        grids = tables.grids(item.recipe, item.setting, item.raw)
        (folder / item.name / "table.md").write_text("\n".join(map(tables.markdown, grids)))
        (folder / item.name / "table.html").write_text("".join(map(tables.html, grids)))
        sections.append(_section(item, files, grids, [each for each in verdicts if each[0] is item]))
    told = [
        {"item": item.name, "claim": claim.says, "verdict": verdict, "p": p, "found": evidence.found}
        for item, claim, evidence, verdict, p in verdicts
    ]
    (folder / "verdicts.json").write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n")
    (folder / PAGE).write_text(_page(sections, verdicts))
    return folder / PAGE


def _page(sections: Sequence[str], verdicts: Sequence[tuple[Item, Claim, Evidence, str, float]]) -> str:
    rows = "".join(
        f'<tr><td><a href="#{item.name}">{item.name}</a></td><td>{escape(claim.says)}</td>{_verdict(verdict, p)}</tr>\n'
        for item, claim, _, verdict, p in verdicts
    )
    summary = f"<table><tr><th>item</th><th>claim</th><th>verdict</th><th>p</th></tr>\n{rows}</table>" if rows else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Reproduction</title>\n'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>\n'
        f"<h1>Reproduction</h1>\n<p>{_INTRODUCTION}</p>\n{summary}\n{''.join(sections)}</body></html>\n"
    )


def _section(
    item: Item, files: Sequence[str], grids: Sequence[tables.Grid],
    verdicts: Sequence[tuple[Item, Claim, Evidence, str, float]],
) -> str:  # fmt: skip
    stale = '<p class="stale">Stale: the recipe or the weights changed since; run this item again.</p>' * item.stale
    png = next((file for file in files if file.endswith(".png")), None)
    svg = next((file for file in files if file.endswith(".svg")), None)
    link = f' <a href="{item.name}/{svg}">SVG</a>' if svg else ""
    picture = f'<p><img src="{item.name}/{png}" alt="{escape(item.recipe.title)}"></p>' if png else ""
    rows = "".join(
        f"<tr><td>{escape(claim.says)}</td>{_verdict(verdict, p)}<td>{escape(evidence.found)}</td></tr>\n"
        for _, claim, evidence, verdict, p in verdicts
    )
    heads = "<tr><th>claim</th><th>verdict</th><th>p</th><th>found</th></tr>"
    judged_here = f'<div class="wide"><table>{heads}\n{rows}</table></div>' if rows else ""
    notes = f'<p class="note">{escape(item.setting.notes)}</p>' if item.setting.notes else ""
    return (
        f'<h2 id="{item.name}">{item.name}: {escape(item.recipe.title)}</h2>\n{stale}'
        f"<p><b>Expected.</b> {escape(item.recipe.expected)}</p>\n{notes}\n{picture}\n{judged_here}\n"
        f'<div class="wide">{"".join(map(tables.html, grids))}</div>\n'
        f'<p class="note">Files: <a href="{item.name}/raw.json">raw numbers</a>,'
        f' <a href="{item.name}/table.md">table</a>{link}</p>\n'
    )


def _verdict(verdict: str, p: float) -> str:
    return f'<td class="verdict">{verdict}</td><td>{p:.2g}</td>'
