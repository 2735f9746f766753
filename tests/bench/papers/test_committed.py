"""docs/reproduction says what the recipes of today found: all items, none stale, and the page is of its files alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from diffscale.bench.papers import figures, page, recipe

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
    assert [item.name for item in found] == recipe.names()
    assert not [item.name for item in found if item.stale]
    assert {page.described(item.options) for item in found} == {"setting shapes"}


def test_the_numbers_say_which_dtype_they_were_made_in(rebuilt: Path) -> None:
    for item in page.items(rebuilt):
        assert {part["dtype"] for part in item.raw["parts"].values()} <= {"float32", "bfloat16", "float16"}
        assert {made["mixed_precision"] for made in item.raw.get("trainings", {}).values()} <= {"no", "bf16", "fp16"}


def test_the_page_is_that_of_its_files(rebuilt: Path) -> None:
    assert (rebuilt / page.PAGE).read_text() == (DOCS / page.PAGE).read_text()
    for table in DOCS.glob("*/table.md"):
        assert (rebuilt / table.parent.name / "table.md").read_text() == table.read_text()
    held, made = (json.loads((folder / "verdicts.json").read_text()) for folder in (DOCS, rebuilt))
    for one, other in zip(held, made, strict=True):
        assert one.pop("p") == pytest.approx(other.pop("p"), rel=1e-6)
        assert one == other


def test_pictures_that_the_page_shows_are_there() -> None:
    for item in page.items(DOCS):
        shown = {"png"} if item.setting.view == "strips" else {"png", "svg"}
        drawn = {path.suffix[1:] for path in (DOCS / item.name).glob("figure.*")}
        assert drawn == (shown if item.setting.panels or item.setting.logs or item.setting.view == "strips" else set())
