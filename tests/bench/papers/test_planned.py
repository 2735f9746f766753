"""The analysis plan: every headline has one test of enough power, and a run counts for the plan that it began with."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from fabricated import fabricated

from diffscale._util.errors import DiffscaleError
from diffscale.bench.papers import claims, headlines, plan, planned, power, recipe, trainings
from diffscale.bench.papers.recipe import Claim, Setting
from diffscale.engine.flops import count_flops

DOCS = Path(__file__).parents[3] / "docs" / "reproduction"


@pytest.fixture(scope="module")
def settings() -> dict[str, Setting]:
    return planned.settings()


def _of_paper(settings: dict[str, Setting], paper: str) -> dict[str, Claim]:
    return {
        name: claim
        for item, each in settings.items()
        if item.startswith(f"{paper}.")
        for name, claim in each.claims.items()
        if claim.headline
    }


@pytest.mark.parametrize("paper", ["A", "B"])
def test_each_headline_has_one_test(settings: dict[str, Setting], paper: str) -> None:
    tested = [
        name
        for item, each in settings.items()
        if item.startswith(paper)
        for name, claim in each.claims.items()
        if claim.headline
    ]
    assert sorted(tested) == sorted(headlines.load(paper).headlines) == sorted(_of_paper(settings, paper))
    # Only what is planned has verdicts.
    assert not [n for n in recipe.names() for c in recipe.load(n).settings["shapes"].claims.values() if c.headline]


def test_each_has_the_power_that_a_plan_needs_from_the_committed_pilots() -> None:
    rows = planned.rows(DOCS, "AB")
    assert len(rows) == 30  # four of A again on handwritten digits
    assert {row.name: round(row.power, 3) for row in rows if row.power < power.WANTED} == {}
    assert all(row.needed != "no size" for row in rows)
    # Holm's first step over the headlines of the paper, both directions counted.
    assert {row.level for row in rows if row.item.startswith("A")} == {0.05 / 2 / 14, 0.05 / 2 / 4}


def test_runs_are_in_float32_from_other_seeds_than_the_pilots(settings: dict[str, Setting]) -> None:
    for setting in settings.values():
        assert setting.written is not None and not setting.quick
        assert {part.dtype for part in setting.parts.values()} == {"float32"}
        assert all(part.seed >= 2601 for part in setting.parts.values())
        for training in setting.trainings.values():
            assert training["mixed_precision"] == "no" and training["seed"] >= 2601
            assert "shapes-judge" not in trainings.config_of(training).rewards
    pilots = [recipe.load(name).settings["shapes"] for name in recipe.names()]
    assert {part.seed for each in pilots for part in each.parts.values()} == {0}


def test_trainings_that_are_compared_have_equal_operations_and_are_shared(settings: dict[str, Setting]) -> None:
    every = {item: each.trainings for item, each in settings.items() if each.trainings}
    for of in every.values():
        assert {each["tflop"] for each in of.values()} <= {5.2, 15.6}
        assert not [each for each in of.values() if trainings.config_of(each).max_train_seconds]
    together = plan.plan(settings.values())
    assert sum(map(len, every.values())) > len(together.trainings) + 20  # what several items need is made once
    whole = together.whole_trainings()
    assert len(together.trainings) - len(whole) == 6  # the short ones of RLHF, which the longer go on from
    assert sum(each["tflop"] for each in whole) < 600


@pytest.mark.slow
@pytest.mark.parametrize("name", ["standard", "m=3"])
def test_a_step_counts_what_the_recipe_says(name: str, settings: dict[str, Setting], tmp_path: Path) -> None:
    """The operations of two rounds less those of one, of a batch of two."""
    given = settings["B.sharpening"].trainings[f"{name} #2701"]
    step = 1000 * given["tflop"] / given["max_train_steps"]
    small = {**given, "train_batch_size": 2, "data": "plain size=8"}
    if "samples_per_round" in small:
        small["samples_per_round"] = 2
    counted = []
    for rounds in (1, 1, 2):  # the first one encodes the data
        with count_flops() as flops:
            steps = rounds * small.get("num_inner_epochs", 1)
            folder = trainings.make({**small, "max_train_steps": steps}, name, tmp_path)
        counted.append(flops.total)
        shutil.rmtree(folder.parent)
    found = (counted[2] - counted[1]) / small.get("num_inner_epochs", 1) * given["train_batch_size"] / 2 / 1e9
    assert found == pytest.approx(step, rel=0.02)


def test_tests_fit_what_is_run(settings: dict[str, Setting]) -> None:
    for item, setting in settings.items():
        plan.check(setting)
        raw = fabricated(item, setting)
        for claim in setting.claims.values():
            evidence = claims.test_claim(claim, raw)
            assert 0 <= evidence.holds <= 1 and 0 <= evidence.fails <= 1 and evidence.effects, claim.says
            # With an effect that matters, or a margin, a headline can fail too.
            assert not claim.headline or all(each["effect"] > 0 for each in planned.comparisons(claim))


def test_what_is_tested_elsewhere_too_is_headlines_of_the_paper_by_tests_that_fit() -> None:
    (item,) = recipe.elsewhere()
    assert planned.tests_elsewhere("A").keys() == {"beats", "algorithms", "iterations", "own verifier"}
    assert planned.tests_elsewhere("A").keys() <= headlines.load("A").headlines.keys()
    setting = planned.setting_of(item)
    raw = fabricated(item, setting, prompts=10)
    for claim in setting.claims.values():
        assert claim.headline and claims.test_claim(claim, raw).effects
    assert setting.written is not None and {part.dtype for part in setting.parts.values()} == {"float32"}
    assert item not in recipe.chosen(["all", "planned", "A"])  # its weights are not here


def test_the_digest_changes_with_all_that_decides_and_with_no_words(settings: dict[str, Setting]) -> None:
    item = "A.ensemble"
    setting = settings[item]
    before = planned.digest(item, setting)

    def changed(**given: Any) -> str:
        return planned.digest(item, setting.model_copy(update=given))

    claim = setting.claims["composition"]
    said = claim.model_copy(update={"says": "otherwise", "design": claim.design.model_copy(update={"unit": "texts"})})  # type: ignore[union-attr]
    assert changed(claims={**setting.claims, "composition": said}, notes="other", written=None) == before
    (comparison,) = claim.options["all_of"]
    looser = claim.model_copy(update={"options": {"all_of": [{**comparison, "matters": 0.04}]}})
    part = setting.parts["texts"]
    others = [
        changed(claims={**setting.claims, "composition": looser}),
        changed(parts={"texts": part.model_copy(update={"seed": 1})}),
        changed(parts={"texts": part.model_copy(update={"repeats": 3})}),
        changed(trainings={"more": {}}),
    ]
    assert len({before, *others}) == 5


def test_a_headline_that_is_added_or_taken_away_changes_the_digest(
    settings: dict[str, Setting], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, found = planned.digest("A.ensemble", settings["A.ensemble"]), headlines.load("A")
    fewer = found.model_copy(update={"headlines": {name: e for name, e in found.headlines.items() if name != "sizes"}})
    monkeypatch.setattr(headlines, "load", lambda _: fewer)
    assert planned.digest("A.ensemble", settings["A.ensemble"]) != before


def test_a_run_counts_for_the_plan_that_it_began_with_if_that_was_written_before(
    settings: dict[str, Setting], tmp_path: Path
) -> None:
    item, now = "A.ensemble", datetime.now(UTC)
    old, later = (settings[item].model_copy(update={"written": now + timedelta(hours=h)}) for h in (-1, 1))
    begun = planned.begin(item, old, tmp_path / item)
    assert planned.begin(item, old, tmp_path / item) == begun  # a run that goes on began when it began
    raw = {"plan": begun}
    assert planned.counts(item, old, raw)
    assert not planned.counts(item, later, raw) and not planned.counts(item, old, {})
    other = old.model_copy(update={"parts": {"texts": old.parts["texts"].model_copy(update={"seed": 7})}})
    assert not planned.counts(item, other, raw)
    assert planned.begin(item, other, tmp_path / item)["plan"] != begun["plan"]
    (tmp_path / item / "begun.json").write_text('{"plan": 3')
    assert planned.begin(item, old, tmp_path / item)["at"] > begun["at"]


def test_a_pilot_that_is_not_there_and_a_headline_without_a_test_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DiffscaleError, match=r"no A\.figure1, a pilot"):
        planned.rows(tmp_path, "A")
    monkeypatch.setattr(recipe, "planned", list)
    with pytest.raises(DiffscaleError, match="No planned item tests the headline 'plateau'"):
        planned.rows(DOCS, "AB")


def test_seeds_make_a_training_and_a_series_of_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = {"model": "shapes-sdxl", "prompts": "shapes-mini", "series": {"base": {}, "ours": {"model": "training T"}}}
    given = {"method": "sft", "model": "shapes-sdxl", "data": "plain", "seeds": [4, 5]}
    setting = {"view": "table", "parts": {"texts": part}, "trainings": {"T": given}}
    (tmp_path / "planned").mkdir()
    content = {"title": "T", "expected": "", "settings": {"shapes": setting}}
    (tmp_path / "planned" / "B.one.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(content))))
    monkeypatch.setattr(recipe, "RECIPES", tmp_path)
    assert recipe.planned() == ["B.one"] == recipe.chosen(["planned"]) and not recipe.chosen(["all"])
    found = recipe.resolved(recipe.load("B.one"), "shapes")
    assert {name: each["seed"] for name, each in found.trainings.items()} == {"T #4": 4, "T #5": 5}
    assert list(found.parts["texts"].series) == ["base", "ours #4", "ours #5"]
    assert found.parts["texts"].series["ours #5"].model == trainings.called(found.trainings["T #5"])
