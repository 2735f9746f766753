"""`reproduction.html`: all items that were run, with what was expected, what was found, and the verdicts.

Built from the files of the runs and the recipes alone. The page is self-contained but for the pictures beside it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, Final, get_args

from diffscale._util.config import validated
from diffscale._util.errors import DiffscaleError
from diffscale.bench.papers import claims, figures, tables, trainings
from diffscale.bench.papers import recipe as recipes
from diffscale.bench.papers.recipe import Claim, Recipe, Setting
from diffscale.bench.papers.session import made_of, read
from diffscale.bench.papers.verdicts import LEVEL, Evidence, Verdict, decide

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
precision, recall) by the jackknife with Student's t: where prompts (classes) have several pictures each, over
noises for the prompts as they are, groups of pictures being left out within strata of prompts; else over groups of
prompts. Claims of no effect are tested by equivalence (TOST) or non-inferiority with the margin that is stated,
trends in a training by the slope over blocks of its steps. One training stands for its method: tests are over
prompts and steps, not over seeds. Of claims of several parts all must hold. A claim does not hold where the
opposite is significant. All p-values are Holm-corrected over this page, both directions counted: the chance of one
wrong verdict on it is at most {LEVEL:.0%}. Intervals have 95% each, without correction.
""".strip()


@dataclass(frozen=True)
class Item:
    """A recipe, the setting that its numbers were made with, told by `options`, and these, with `logs` of trainings."""

    name: str
    options: dict[str, Any]
    recipe: Recipe
    setting: Setting
    raw: dict[str, Any]
    stale: bool


@dataclass(frozen=True)
class Judged:
    """A claim of an item, its corrected p-value, and `why` it came out so, empty where nothing is said of that."""

    item: Item
    claim: Claim
    evidence: Evidence
    verdict: Verdict
    p: float
    why: str


def keep(folder: Path, name: str, recipe: Recipe, setting: Setting, options: dict[str, Any]) -> None:
    """Write beside the raw numbers what they were made with, so that the page can be built from files.

    `options`: what `recipe.resolved` was given besides the recipe.
    """
    what = {
        "made_of": made_of(setting), "options": options, "recipe": recipe.model_dump(mode="json"),
        "setting": setting.model_dump(mode="json"),
    }  # fmt: skip
    fresh = folder / name / "recipe.json.new"
    fresh.write_text(json.dumps(what, indent=1, ensure_ascii=False) + "\n")
    fresh.replace(folder / name / "recipe.json")


def kept(folder: Path, name: str) -> dict[str, Any] | None:
    """What `keep` wrote beside the numbers of an item; None where it did not get to it, as a run was killed."""
    path = folder / name / "recipe.json"
    held = dict(json.loads(path.read_text())) if path.is_file() else {}
    raw = read(folder, name)
    return held if raw is not None and held.get("made_of") == raw["made_of"] else None


def described(options: dict[str, Any]) -> str:
    """The options of a run, in words: its setting, and what made it smaller than the recipe."""
    most = f", {options['limit']} prompts at most" if options.get("limit") else ""
    return f"setting {options['setting']}{', quick' if options.get('quick') else ''}{most}"


def check(folder: Path, name: str, options: dict[str, Any]) -> None:
    """Raise DiffscaleError where a run with `options` would replace numbers in `folder` of another setting, or of more
    prompts."""
    held = kept(folder, name)
    if held is None:
        return
    before = held["options"]
    if bool(before.get("quick")) == options["quick"]:
        smaller = (options["limit"] or math.inf) < (before.get("limit") or math.inf)
    else:
        smaller = options["quick"]
    if smaller or before["setting"] != options["setting"]:
        raise DiffscaleError(
            f"{folder} has {name} with {described(before)}, which {described(options)} would replace: give another "
            "--output."
        )


def items(folder: Path) -> list[Item]:
    """All items that have numbers in `folder`, and what these were made with.

    Where the recipe of today, with the options of the run, asks for these very numbers, it also says how they are shown
    and judged; else they are stale, and shown by the recipe that made them.
    """
    found = []
    known = recipes.names()
    present = {path.parent.name for path in folder.glob("*/raw.json")}
    for name in [*(n for n in known if n in present), *sorted(present - set(known))]:
        held = kept(folder, name)
        if held is None:
            continue  # killed between its numbers and what they were made with: the next run of it mends that
        raw = json.loads((folder / name / "raw.json").read_text())
        today = _today(name, held["options"]) if name in known else None
        stale = today is None or made_of(today[1]) != raw["made_of"]
        try:
            recipe, setting = today if today is not None and not stale else _then(held)
            raw["logs"] = trainings.read_logs(folder / name, raw, setting.trainings)
        except (DiffscaleError, KeyError) as error:
            raise DiffscaleError(
                f"{folder / name} is of another version of diffscale: run {name} again, or move it away ({error})."
            ) from error
        found.append(Item(name, held["options"], recipe, setting, raw, stale))
    return found


def _today(name: str, options: dict[str, Any]) -> tuple[Recipe, Setting] | None:
    """The recipe as it is, None where it has no such setting any more."""
    recipe = recipes.load(name)
    return (recipe, recipes.resolved(recipe, **options)) if options["setting"] in recipe.settings else None


def _then(held: dict[str, Any]) -> tuple[Recipe, Setting]:
    """The recipe that made the numbers."""
    return validated(Recipe, held["recipe"]), validated(Setting, held["setting"])


def test_claims(every: Sequence[Item]) -> list[Judged]:
    """All claims of a page."""
    found = [(item, name, claim) for item in every for name, claim in item.setting.claims.items()]
    evidence = [claims.test_claim(claim, item.raw) for item, _, claim in found]
    return [
        Judged(item, claim, each, verdict, p, _known(item, name, verdict))
        for (item, name, claim), each, (verdict, p) in zip(found, evidence, decide(evidence), strict=True)
    ]


def _known(item: Item, claim: str, verdict: Verdict) -> str:
    """What the recipe knows of why, which is of its run in full."""
    full = not (item.stale or item.options.get("quick") or item.options.get("limit"))
    return item.setting.why.get(claim, {}).get(verdict, "") if full else ""


def build(folder: Path) -> Path:
    """Draw all items in `folder` and write tables, `verdicts.json` and the page; raises DiffscaleError if none is."""
    every = items(folder)
    if not every:
        raise DiffscaleError(f"{folder} holds no results: run `diffscale reproduce A.figure1 --output {folder}`.")
    verdicts = test_claims(every)
    sections = []
    for item in every:
        files = figures.draw(item.raw, item.setting, folder / item.name)
        grids = tables.grids(item.recipe, item.setting, item.raw)
        (folder / item.name / "table.md").write_text("\n".join(map(tables.markdown, grids)))
        (folder / item.name / "table.html").write_text("".join(map(tables.html, grids)))
        sections.append(_section(item, files, grids, [each for each in verdicts if each.item is item]))
    told = [
        {"item": each.item.name, "run": described(each.item.options), "stale": each.item.stale,
         "claim": each.claim.says, "verdict": each.verdict, "p": each.p, "found": each.evidence.found, "why": each.why}
        for each in verdicts
    ]  # fmt: skip
    (folder / "verdicts.json").write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n")
    (folder / PAGE).write_text(_page(sections, verdicts))
    return folder / PAGE


def _page(sections: Sequence[str], verdicts: Sequence[Judged]) -> str:
    rows = "".join(
        f'<tr><td><a href="#{each.item.name}">{each.item.name}</a>{" (stale)" * each.item.stale}</td>'
        f"<td>{described(each.item.options)}</td><td>{escape(each.claim.says)}</td>{_verdict(each)}</tr>\n"
        for each in verdicts
    )
    heads = "<tr><th>item</th><th>run</th><th>claim</th><th>verdict</th><th>p</th></tr>"
    given = [each.verdict for each in verdicts]
    counts = ", ".join(f"{verdict} {given.count(verdict)}" for verdict in get_args(Verdict))
    caption = f"All {len(given)} claims: {counts}"
    summary = f"<table><caption>{caption}</caption>\n{heads}\n{rows}</table>" if rows else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Reproduction</title>\n'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>\n'
        f"<h1>Reproduction</h1>\n<p>{_INTRODUCTION}</p>\n{summary}\n{''.join(sections)}</body></html>\n"
    )


def _section(
    item: Item, files: Sequence[str], grids: Sequence[tables.Grid],
    verdicts: Sequence[Judged],
) -> str:  # fmt: skip
    stale = '<p class="stale">Stale: the recipe or the weights changed since; run this item again.</p>' * item.stale
    png = next((file for file in files if file.endswith(".png")), None)
    svg = next((file for file in files if file.endswith(".svg")), None)
    link = f' <a href="{item.name}/{svg}">SVG</a>' if svg else ""
    picture = f'<p><img src="{item.name}/{png}" alt="{escape(item.recipe.title)}"></p>' if png else ""
    rows = "".join(
        f"<tr><td>{escape(each.claim.says)}</td>{_verdict(each)}"
        f"<td>{'<br>'.join(map(escape, each.evidence.found.split('; ')))}{_why(each)}</td></tr>\n"
        for each in verdicts
    )
    heads = "<tr><th>claim</th><th>verdict</th><th>p</th><th>found</th></tr>"
    judged_here = f'<div class="wide"><table><caption>Claims</caption>\n{heads}\n{rows}</table></div>' if rows else ""
    notes = f'<p class="note">{escape(item.setting.notes)}</p>' if item.setting.notes else ""
    return (
        f'<h2 id="{item.name}">{item.name}: {escape(item.recipe.title)}</h2>\n{stale}'
        f"<p><b>Expected.</b> {escape(item.recipe.expected)}</p>\n"
        f'<p class="note">Run: {described(item.options)}.</p>\n{notes}\n{picture}\n{judged_here}\n'
        f'<div class="wide">{"".join(map(tables.html, grids))}</div>\n'
        f'<p class="note">Files: <a href="{item.name}/raw.json">raw numbers</a>,'
        f' <a href="{item.name}/table.md">table</a>{link}</p>\n'
    )


def _why(one: Judged) -> str:
    return f'<p class="note">{escape(one.why)}</p>' if one.why else ""


def _verdict(one: Judged) -> str:
    return f'<td class="verdict">{one.verdict}</td><td>{one.p:.2g}</td>'
