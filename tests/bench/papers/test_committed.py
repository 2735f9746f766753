"""docs/reproduction says what the recipes of today found: all items, none stale, and the page is of its files alone."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from diffscale._util import config
from diffscale.bench.papers import figures, page, planned, recipe

DOCS = Path(__file__).parents[3] / "docs" / "reproduction"


@pytest.fixture(scope="module")
def rebuilt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page from the numbers and logs alone; pictures, which matplotlib draws, are left out."""
    folder = tmp_path_factory.mktemp("rebuilt")
    for item in DOCS.glob("*/raw.json"):
        kept = shutil.ignore_patterns("figure.*", "table.*", "pictures")
        shutil.copytree(item.parent, folder / item.parent.name, ignore=kept)

    def drawn(_: Any, __: Any, at: Path) -> list[str]:
        return sorted(path.name for path in (DOCS / at.name).glob("figure.*"))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(figures, "draw", drawn)
        page.build(folder)
    return folder


def test_every_item_was_run_in_full_and_none_is_stale(rebuilt: Path) -> None:
    found = page.items(rebuilt)
    others = {*recipe.planned(), *recipe.elsewhere()}
    assert [item.name for item in found if item.name not in others] == recipe.names()
    assert not [item.name for item in found if item.stale]
    runs = {item.name: page.described(item.options) for item in found}
    assert all(run == f"setting {'digits' if name in recipe.elsewhere() else 'shapes'}" for name, run in runs.items())


def test_the_numbers_say_which_dtype_they_were_made_in(rebuilt: Path) -> None:
    for item in page.items(rebuilt):
        assert {part["dtype"] for part in item.raw["parts"].values()} <= {"float32", "bfloat16", "float16"}
        assert {made["mixed_precision"] for made in item.raw.get("trainings", {}).values()} <= {"no", "bf16", "fp16"}


def test_the_page_is_that_of_its_files(rebuilt: Path) -> None:
    assert (rebuilt / page.PAGE).read_text() == (DOCS / page.PAGE).read_text()
    for table in DOCS.glob("*/table.md"):
        assert (rebuilt / table.parent.name / "table.md").read_text() == table.read_text()
    held, made = (json.loads((folder / "verdicts.json").read_text()) for folder in (DOCS, rebuilt))
    for one, other in zip(held["headlines"], made["headlines"], strict=True):
        assert (one.pop("p") or 0) == pytest.approx(other.pop("p") or 0, rel=1e-6)
        assert one == other
    assert held["estimates"] == made["estimates"]


def test_the_page_is_light_enough_for_a_phone() -> None:
    text = (DOCS / page.PAGE).read_text(encoding="utf-8")
    shown = {DOCS / name for name in re.findall(r'<img[^>]* src="([^"]+)"', text)}
    assert len(shown) >= 15 and all('loading="lazy"' in tag for tag in re.findall("<img[^>]*>", text))
    assert len(text.encode()) + sum(path.stat().st_size for path in shown) < 5_000_000
    # No sentence but the paper's own is said again and again.
    said = Counter(re.findall(r">([^<>]{60,})<", text.split('id="how"')[0]))
    assert max(said.values()) < 10


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=DOCS, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("item", [*recipe.planned(), *recipe.elsewhere()])
def test_the_plan_of_a_run_was_committed_before_the_run(item: str) -> None:
    """The recipe of a commit from before the run began has the digest that the run wrote down, as today's has."""
    raw = json.loads((DOCS / item / "raw.json").read_text()) if (DOCS / item / "raw.json").is_file() else None
    if raw is None:
        pytest.skip("not run yet: the page says so")
    assert planned.counts(item, planned.setting_of(item), raw)
    try:
        path = recipe.path_of(item).resolve().relative_to(_git("rev-parse", "--show-toplevel").strip())
        commits = [line.split() for line in _git("log", "--format=%H %cI", "--", f":/{path}").splitlines()]
    except (OSError, subprocess.CalledProcessError, ValueError):
        pytest.skip("there is no history here")
    if not commits or _git("rev-parse", "--is-shallow-repository").strip() == "true":
        pytest.skip("there is no history here")
    begun = datetime.fromisoformat(raw["plan"]["at"])
    before = [commit for commit, at in commits if datetime.fromisoformat(at) < begun]
    assert before, "the plan was committed after the run began"
    with pytest.MonkeyPatch.context() as patched:
        content = yaml.safe_load(_git("show", f"{before[0]}:{path}"))
        read = config.read
        patched.setattr(config, "read", lambda file: content if file.stem == item else read(file))
        then = planned.setting_of(item)
    assert planned.digest(item, then) == raw["plan"]["plan"]


def test_pictures_that_the_page_shows_are_there() -> None:
    for item in page.items(DOCS):
        shown = {"png"} if item.setting.view == "strips" else {"png", "svg"}
        drawn = {path.suffix[1:] for path in (DOCS / item.name).glob("figure.*")}
        assert drawn == (shown if item.setting.panels or item.setting.logs or item.setting.view == "strips" else set())
