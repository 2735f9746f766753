"""Headlines on the page: verdicts come from runs by the plan alone, and can be told without colours."""

from __future__ import annotations

import json
import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from fabricated import fabricated

from diffscale.bench.papers import decided, figures, headlines, page, planned, recipe
from diffscale.bench.papers.recipe import Setting
from diffscale.bench.papers.session import made_of

ITEM = "A.models"


def _written(folder: Path, change: dict[str, Any] | None = None) -> tuple[Setting, dict[str, Any]]:
    """A planned run in `folder`: search is much better than DPO, and the small model is worse than the large one."""
    loaded = recipe.load(ITEM)
    setting = recipe.resolved(loaded, "shapes")
    raw = fabricated(ITEM, setting)
    for part, series, by in (("preferences", "+ DPO & search", 3.0), ("small", "shapes-pixart + search", -3.0)):
        for row in raw["parts"][part]["series"][series]:
            for scores in row["scores"].values():
                scores[:] = [score + by for score in scores]
    raw["parts"]["small"]["series"]["shapes-flux"][0]["flops"] = 1e12
    assert setting.written is not None
    begun = (setting.written + timedelta(hours=1)).isoformat()
    raw |= {"made_of": made_of(setting), "plan": {"plan": planned.digest(ITEM, setting), "at": begun} | (change or {})}
    raw.pop("logs")
    (folder / ITEM).mkdir(parents=True, exist_ok=True)
    (folder / ITEM / "raw.json").write_text(json.dumps(raw))
    page.write_recipe(folder, ITEM, loaded, setting, {"setting": "shapes"})
    return setting, raw


def _verdicts(folder: Path) -> dict[str, dict[str, Any]]:
    page.build(folder)
    return {row["headline"]: row for row in json.loads((folder / "verdicts.json").read_text())["headlines"]}


@pytest.fixture(autouse=True)
def _undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "draw", lambda *_: [])


def test_a_run_by_the_plan_has_verdicts_corrected_over_the_paper(tmp_path: Path) -> None:
    _written(tmp_path)
    found = _verdicts(tmp_path)
    assert list(found) == list(headlines.load("A").headlines)  # paper B has nothing here, and is not shown
    assert found["preferences"]["verdict"] == "holds" and found["small model"]["verdict"] == "does not hold"
    assert {row["verdict"] for name, row in found.items() if row["item"] != ITEM} == {decided.NOT_RUN}
    evidence = planned.tests("A")["preferences"]
    raw = json.loads((tmp_path / ITEM / "raw.json").read_text())
    alone = decided.claims.test_claim(evidence[2], raw)
    assert 0 < alone.holds < 1e-3 and found["preferences"]["p"] >= 13 * 2 * alone.holds  # all 14 count, run or not


@pytest.mark.parametrize(
    "change", [{"plan": "another"}, {"at": "2020-01-01T00:00:00+00:00"}], ids=["another plan", "before the plan"]
)
def test_a_run_of_another_plan_or_before_it_has_no_verdict(tmp_path: Path, change: dict[str, str]) -> None:
    _written(tmp_path, change)
    found = _verdicts(tmp_path)
    assert {row["verdict"] for row in found.values()} == {decided.NOT_RUN}
    assert all(row["p"] is None and not row["found"] for row in found.values())


def test_a_smaller_run_has_no_verdict(tmp_path: Path) -> None:
    setting, raw = _written(tmp_path)
    small = recipe.resolved(recipe.load(ITEM), "shapes", limit=24)
    raw |= {"made_of": made_of(small), "plan": raw["plan"] | {"plan": planned.digest(ITEM, small)}}
    assert not planned.counts(ITEM, setting, raw)
    (tmp_path / ITEM / "raw.json").write_text(json.dumps(raw))
    page.write_recipe(tmp_path, ITEM, recipe.load(ITEM), small, {"setting": "shapes", "limit": 24})
    assert {row["verdict"] for row in _verdicts(tmp_path).values()} == {decided.NOT_RUN}


def test_verdicts_are_told_by_icon_and_word_and_effects_are_drawn(tmp_path: Path) -> None:
    _written(tmp_path)
    _verdicts(tmp_path)
    text = (tmp_path / page.PAGE).read_text()
    assert len(set(decided.ICONS.values())) == len(decided.ICONS) == 4
    for verdict in ("holds", "does not hold", decided.NOT_RUN):
        assert re.search(f"{decided.ICONS[verdict]}</b> {verdict}</span>", text)
    row = text.split('id="A-preferences"')[1].split("</article>")[0]
    assert 'class="interval"' in row and 'class="dot"' in row and 'class="paper"' in row
    assert row.count('class="other"') == 2  # the other two of its three scores
    for link in re.findall(r'href="#([^"]+)"', text):
        assert f'id="{link}"' in text
    assert "<script" not in text and "http" not in text.replace("https://", "")


def test_effects_are_drawn_within_the_track() -> None:
    place = decided.Mark.place
    assert [place(value) for value in (-99, -5, 0, 1, 5, float("inf"))] == [0, 0, 50, 60, 100, 100]


def test_the_verdicts_on_two_worlds_stand_side_by_side_without_the_weights_of_others(tmp_path: Path) -> None:
    (item,) = recipe.elsewhere()
    loaded, setting = recipe.load(item), planned.setting_of(item)
    raw = fabricated(item, setting, prompts=10)
    raw.pop("logs")
    for row in raw["parts"]["digits"]["series"]["search by ocr"][1:]:
        row["scores"]["lenet"] = [score + 3 for score in row["scores"]["lenet"]]
    assert setting.written is not None
    begun = (setting.written + timedelta(hours=1)).isoformat()
    raw |= {"made_of": "what its weights made", "plan": {"plan": planned.digest(item, setting), "at": begun}}
    (tmp_path / item).mkdir()
    (tmp_path / item / "raw.json").write_text(json.dumps(raw))
    written = {"made_of": raw["made_of"], "options": {"setting": "digits"}}
    dumped = {"recipe": loaded.model_dump(mode="json"), "setting": setting.model_dump(mode="json")}
    (tmp_path / item / "recipe.json").write_text(json.dumps(written | dumped))
    _written(tmp_path)
    assert _verdicts(tmp_path)["beats"]["verdict"] == decided.NOT_RUN
    told = json.loads((tmp_path / "verdicts.json").read_text())["elsewhere"]
    assert {row["headline"]: row["verdict"] for row in told}["beats"] == "holds"
    text = (tmp_path / page.PAGE).read_text()
    row = next(row for row in text.split('<div class="pair">') if row.startswith("<span>At equal NFE"))
    assert row.index(decided.NOT_RUN) < row.index("> holds</span>") and f'href="#{item}-beats"' in row
    assert f'id="{item}-beats"' in text and "reproduce_mnist.py" in text
    # Another plan is another run.
    raw["plan"]["plan"] = "another"
    (tmp_path / item / "raw.json").write_text(json.dumps(raw))
    _verdicts(tmp_path)
    told = json.loads((tmp_path / "verdicts.json").read_text())["elsewhere"]
    assert {row["verdict"] for row in told} == {decided.NOT_RUN}
