"""`reproduction.html`: the verdicts on both papers' headlines, and all items that were run with what was found.

Built from the files of the runs and the recipes alone. The page is self-contained but for the pictures beside it.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, select_autoescape
from pydantic import BaseModel

from diffscale._util.config import validated
from diffscale._util.errors import DiffscaleError
from diffscale._util.files import read_json, write_json, write_text
from diffscale.bench.papers import claims, decided, figures, planned, tables, trainings
from diffscale.bench.papers import recipe as recipes
from diffscale.bench.papers.decided import Mark
from diffscale.bench.papers.recipe import Claim, Recipe, Setting
from diffscale.bench.papers.session import made_of, read
from diffscale.bench.papers.verdicts import LEVEL
from diffscale.report.text import drawing

PAGE: Final = "reproduction.html"
_TEMPLATES: Final = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=select_autoescape(["html"]),
    trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
)  # fmt: skip


class _Written(BaseModel):
    """What `write_recipe` writes."""

    made_of: str
    options: dict[str, Any]
    recipe: dict[str, Any]
    setting: dict[str, Any]


@dataclass(frozen=True)
class Item:
    """A recipe, the setting that its numbers were made with, told by `options`, and these, with `logs` of trainings."""

    name: str
    options: dict[str, Any]
    recipe: Recipe
    setting: Setting
    raw: dict[str, Any]
    stale: bool

    @property
    def run(self) -> str:
        return described(self.options)


@dataclass(frozen=True)
class Section:
    """An item as the page shows it: names of its drawings, tables and estimates."""

    item: Item
    files: list[str]
    grids: list[tables.Grid]
    estimates: list["Estimate"]


@dataclass(frozen=True)
class Estimate:
    """What an item found of a claim that is no headline, in words, and what is known of `why`, if anything."""

    item: Item
    claim: Claim
    found: str
    why: str


def write_recipe(folder: Path, name: str, recipe: Recipe, setting: Setting, options: dict[str, Any]) -> None:
    """Write beside the raw numbers what they were made with, so that the page can be built from files.

    `options`: what `recipe.resolved` was given besides the recipe.
    """
    dumped = {"recipe": recipe.model_dump(mode="json"), "setting": setting.model_dump(mode="json")}
    write_json(folder / name / "recipe.json", {"made_of": made_of(setting), "options": options, **dumped}, indent=1)


def read_recipe(folder: Path, name: str) -> dict[str, Any] | None:
    """What `write_recipe` wrote for the numbers of an item; None where it did not get to it, as a run was killed,
    and where the file is broken."""
    content, raw = read_json(folder / name / "recipe.json", _Written), read(folder, name)
    return content if raw is not None and content is not None and content["made_of"] == raw["made_of"] else None


def described(options: dict[str, Any]) -> str:
    """The options of a run, in words: its setting, and what made it smaller than the recipe."""
    most = f", {options['limit']} prompts at most" if options.get("limit") else ""
    return f"setting {options['setting']}{', quick' if options.get('quick') else ''}{most}"


def check(folder: Path, name: str, options: dict[str, Any]) -> None:
    """Raise DiffscaleError where a run with `options` would replace numbers in `folder` of another setting, or of more
    prompts."""
    written = read_recipe(folder, name)
    if written is None:
        return
    before = written["options"]
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
    and what is claimed of them; else they are stale, and shown by the recipe that made them.
    """
    known, found = [*recipes.planned(), *recipes.elsewhere(), *recipes.names()], []
    present = {path.parent.name for path in folder.glob("*/raw.json")}
    for name in [*(n for n in known if n in present), *sorted(present - set(known))]:
        written = read_recipe(folder, name)
        if written is None:
            continue  # killed between its numbers and what they were made with: the next run of it mends that
        raw, options = read(folder, name) or {}, written["options"]
        try:
            recipe = recipes.load(name) if name in known else None
            if recipe is not None and options["setting"] in recipe.settings:
                setting = recipes.resolved(recipe, **options)
                stale = _is_stale(name, setting, raw)
            else:
                stale = True
            if recipe is None or stale:
                recipe, setting = validated(Recipe, written["recipe"]), validated(Setting, written["setting"])
            raw["logs"] = trainings.read_logs(folder / name, raw, setting.trainings)
        except (DiffscaleError, KeyError) as error:
            raise DiffscaleError(
                f"{folder / name} is of another version of diffscale: run {name} again, or move it away ({error})."
            ) from error
        found.append(Item(name, options, recipe, setting, raw, stale))
    return found


def _is_stale(name: str, setting: Setting, raw: dict[str, Any]) -> bool:
    """Whether numbers are not those that `setting` asks for; elsewhere, where weights need not be here, by the plan."""
    if name in recipes.elsewhere():
        return bool(raw.get("plan", {}).get("plan") != planned.digest(name, setting))
    return made_of(setting) != raw["made_of"]


def estimates(item: Item) -> list[Estimate]:
    """All claims of an item that are no headlines."""
    # What the recipe knows of why is of its run in full.
    full = not (item.stale or item.options.get("quick") or item.options.get("limit"))
    return [
        Estimate(
            item, claim, claims.test_claim(claim, item.raw).found, item.setting.remarks.get(name, "") if full else ""
        )
        for name, claim in item.setting.claims.items()
        if not claim.headline
    ]


def _told(paper: str, each: decided.Decision) -> dict[str, Any]:
    """A headline in `verdicts.json`."""
    known = {"paper": paper, "headline": each.name, "says": each.headline.says, "item": each.item}
    found = each.evidence.found if each.evidence else ""
    return {**known, "verdict": each.verdict, "p": each.p, "why": each.why, "found": found}


def build(folder: Path) -> Path:
    """Draw all items in `folder` and write tables, `verdicts.json` and the page; raises DiffscaleError if none is."""
    every = items(folder)
    if not every:
        raise DiffscaleError(f"{folder} holds no results: run `diffscale reproduce A.figure1 --output {folder}`.")
    raws = {item.name: item.raw for item in every if not item.stale}
    papers = decided.decided(folder, raws, [item.name for item in every])
    sections = []
    for item in sorted(every, key=lambda item: item.setting.view != "strips"):  # pictures say most, and come first
        files: list[str] = []
        with drawing(f"The figure of {item.name}"):
            files = figures.draw(item.raw, item.setting, folder / item.name)
        grids = tables.grids(item.recipe, item.setting, item.raw)
        for kind in ("md", "html"):
            text = _TEMPLATES.get_template(f"tables.{kind}").render(grids=grids)
            write_text(folder / item.name / f"table.{kind}", text)
        sections.append(Section(item, files, grids, estimates(item)))
    told = {
        "headlines": [_told(paper.key, each) for paper in papers for each in paper.decisions],
        "elsewhere": [_told(paper.key, each) for paper in papers for each in paper.elsewhere.values()],
        "estimates": [
            {"item": each.item.name, "run": each.item.run, "stale": each.item.stale, "claim": each.claim.says,
             "found": each.found, "why": each.why}
            for section in sections for each in section.estimates
        ],
    }  # fmt: skip
    write_json(folder / "verdicts.json", told, indent=1)
    page = _TEMPLATES.get_template("page.html")
    text = page.render(papers=papers, sections=sections, level=f"{LEVEL:.0%}", icons=decided.ICONS, place=Mark.place)
    write_text(folder / PAGE, text)
    return folder / PAGE
