"""The recipes in the package: all items are there, fit their claims and views, and cost what was promised."""

from __future__ import annotations

from pathlib import Path

import pytest
from fabricated import fabricated
from matplotlib.figure import Figure

from diffscale._util.errors import DiffscaleError
from diffscale.bench.papers import claims, figures, plan, points, recipe, tables, trainings
from diffscale.bench.papers.plan import check
from diffscale.bench.papers.points import Call
from diffscale.bench.papers.recipe import Setting

SUITES = {"drawbench": "shapes-mini", "t2i-compbench": "shapes"}
CASES = [
    (name, setting, quick)
    for name in recipe.names()
    for setting in recipe.load(name).settings
    for quick in (False, True)
]


@pytest.fixture(autouse=True)
def _siblings(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the siblings' folders state, whether or not they are shipped yet."""

    def stated(model: str) -> dict[str, object]:
        solver = {"solver": "heun"} if "sit" in model else {}
        return {"num_inference_steps": 10 if solver else 20, **solver}

    monkeypatch.setattr(points, "stated_call", stated)


def _resolved(name: str, setting: str, quick: bool) -> Setting:
    # Any file stands for the statistics of real pictures, which are not opened here.
    return recipe.resolved(recipe.load(name), setting, quick=quick, suites=SUITES, reference=__file__)


def test_all_items_of_the_paper_are_there_in_its_order() -> None:
    figures = [1, *range(3, 16)]
    wanted = [f"A.figure{n}" for n in figures] + ["A.figure17-23"] + [f"A.table{n}" for n in (1, 2, 3, 4, 7, 8)]
    assert [name for name in recipe.names() if name.startswith("A.")] == wanted
    assert all({"shapes", "paper"} <= recipe.load(name).settings.keys() for name in wanted)


def test_paper_b_is_there_but_for_its_drawings_and_its_user_study() -> None:
    wanted = [f"B.figure{n}" for n in (3, 4, 5, 6)] + [f"B.table{n}" for n in (1, 2, 3)]
    assert [name for name in recipe.names() if name.startswith("B.")] == wanted
    assert all({"shapes", "paper"} <= recipe.load(name).settings.keys() for name in wanted)


@pytest.mark.parametrize(("name", "setting", "quick"), CASES)
def test_claims_and_views_of_a_recipe_fit_its_parts(name: str, setting: str, quick: bool) -> None:
    found = _resolved(name, setting, quick)
    if "imagenet" not in {part.prompts for part in found.parts.values()} or quick:
        check(found)
    raw = fabricated(name, found)
    for claim in found.claims.values():
        evidence = claims.test_claim(claim, raw)
        assert 0 <= evidence.holds <= 1 and 0 <= evidence.fails <= 1 and evidence.found
    for grid in tables.grids(recipe.load(name), found, raw):
        assert all(len(row) == len(grid.heads) for row in grid.rows)
    for panel in found.panels:
        part = found.parts[panel.part]
        known = [*part.judges, *part.sets, *(part.pairs.of if part.pairs else [])]
        assert panel.y in known and set(panel.only) <= part.series.keys()
    assert found.remarks.keys() <= found.claims.keys() and not found.why  # only headlines have verdicts to explain
    for log in found.logs:
        assert set(log.of) <= found.trainings.keys()
    for training in found.trainings.values():
        assert not quick or trainings.config_of(training).max_train_steps <= 8


@pytest.mark.parametrize(("setting", "n", "m", "count"), [("shapes", 4, 1, 30), ("paper", 3, 3, 27)])
def test_items_of_paper_b_share_their_trainings(setting: str, n: int, m: int, count: int) -> None:
    every = {name: _resolved(name, setting, False).trainings for name in recipe.names() if name.startswith("B.")}
    ids = {name: {label: trainings.id_of(each) for label, each in of.items()} for name, of in every.items()}
    rlhf = ids["B.table1"]["RLHF sharpening"]
    assert rlhf == ids["B.table2"][f"n={n}"] == ids["B.table3"][f"m={m}"]
    assert rlhf == ids["B.figure5"]["RLHF"] == ids["B.figure6"]["RLHF sharpening"]
    together = plan.plan(_resolved(name, setting, False) for name in every)
    assert len(together.trainings) == count and sum(map(len, ids.values())) == 38
    methods = {trainings.config_of(each).method for each in together.trainings.values()}
    assert methods == {"sft", "dpo", "ddpo", "d3po", "iterpo", "sharpen-sft", "sharpen-rlhf"}
    assert all("shapes-judge" not in trainings.config_of(each).rewards for each in together.trainings.values())


def test_the_claims_of_the_issue_are_judged() -> None:
    said = [c.says for n in recipe.names() for c in recipe.load(n).settings["shapes"].claims.values()]
    for words in (
        "plateau", "keeps improving", "wins on its own verifier", "keep more diversity", "disagree",
        "ensemble is in no", "does not help composition", "works class-conditionally",
        "hardly works in text-to-image", "fewer FLOPs",
        "adds to DPO", "sweet spot", "First-order search is not better",
    ):  # fmt: skip
        assert any(words in one for one in said), words


def test_claims_of_shapes_are_those_of_the_paper_s_models_too() -> None:
    for name in recipe.names():
        settings = recipe.load(name).settings
        assert settings["shapes"].claims.keys() == settings["paper"].claims.keys(), name


def test_recipes_of_shapes_leave_the_dtype_to_the_machine() -> None:
    """On a processor without fast bfloat16 they would take days in it."""
    for name in recipe.names():
        shapes = recipe.load(name).settings["shapes"]
        assert {part.dtype for part in shapes.parts.values()} <= {"auto"}, name
        assert not [training for training in shapes.trainings.values() if training.get("mixed_precision")], name


def test_search_is_never_a_single_candidate_in_the_paper_s_setting() -> None:
    for name in (name for name in recipe.names() if name.startswith("A.")):
        for part in recipe.load(name).settings["paper"].parts.values():
            for series in part.series.values():
                assert all(not budget or budget >= 2 * (series.steps or part.steps) for budget in series.budgets), name


def test_what_items_share_is_counted_once_and_all_of_shapes_is_within_bounds() -> None:
    settings = [_resolved(name, "shapes", False) for name in recipe.names() if name.startswith("A.")]
    together = sum(plan.plan(settings).nfe().values())
    apart = sum(sum(plan.plan([setting]).nfe().values()) for setting in settings)
    # One core does 470 NFE a second of this mix, decoding and scoring included: 4 hours of it are 6.8 million.
    assert together < 4_500_000 < apart
    quick = [_resolved(name, "shapes", True) for name in recipe.names()]
    assert max(sum(plan.plan([setting]).nfe().values()) for setting in quick) < 15_000


def test_a_pool_is_counted_by_its_largest_budget_and_an_anytime_search_by_its_longest() -> None:
    part = {
        "model": "shapes-flux", "prompts": "shapes-mini", "limit": 2,
        "series": {
            "no search": {},
            "clip": {"verifier": "clip", "budgets": [0, 40, 80]},
            "aesthetic": {"verifier": "aesthetic", "budgets": [60]},
            "zero": {"verifier": "clip", "search": "zero_order n=2", "budgets": [0, 40, 80]},
            "paths": {"verifier": "clip", "search": "paths n=1 length=2", "budgets": [40, 60]},
        },
    }  # fmt: skip
    found = plan.plan([Setting(view="table", parts={"texts": recipe.Part(**part)})])
    assert sum(found.nfe().values()) == 2 * (80 + 80 + 40 + 60)
    # Scored are 4 and 3 of the pool, and what each search makes: neighbours once, paths anew with each budget.
    scored = {(text, what): n for (text, _, what), n in found.verified.items()}
    assert scored["clip", "pool"] == 2 * 4 and scored["aesthetic", "pool"] == 2 * 3
    assert sum(n for (_, what), n in scored.items() if what != "pool") == 2 * (4 + 2 + 3)


def test_pairs_are_of_what_is_searched_not_of_the_final_samples() -> None:
    found = _resolved("A.figure5", "paper", True).parts["classes"]
    needs = plan.plan([Setting(view="curves", parts={"classes": found})])
    assert {call.steps for call, pool in needs.pools.items() if max(pool.values()) > 1} == {25}
    assert {call.steps for _, call, what in needs.verified if what == "pool"} == {25}


def test_metrics_that_cannot_be_are_refused_before_anything_runs() -> None:
    loaded = recipe.load("A.figure13")
    for reference, words in ((None, "give --reference"), ("no/such/file", "no file no/such/file")):
        with pytest.raises(DiffscaleError, match=words):
            check(recipe.resolved(loaded, "paper", quick=True, reference=reference))
    oracle = recipe.resolved(recipe.load("A.figure3"), "paper", reference="real.safetensors")
    assert oracle.parts["classes"].series["oracle FID"].verifier == "oracle_fid reference=real.safetensors"
    part = loaded.settings["shapes"].parts["classes"].model_copy(update={"repeats": 1})
    with pytest.raises(DiffscaleError, match="repeats of 2"):
        check(Setting(view="curves", parts={"classes": part}))


def test_nfe_of_a_call_counts_both_evaluations_of_heun() -> None:
    assert Call("shapes-sit-s", None, (), "float32", 0).nfe == 20
    assert Call("shapes-sit-s", 25, (("solver", "euler"),), "float32", 0).nfe == 25


def test_a_suite_that_is_not_shipped_is_asked_for() -> None:
    with pytest.raises(DiffscaleError, match="--suite drawbench=FILE"):
        check(recipe.resolved(recipe.load("A.table2"), "paper"))


def test_a_quick_setting_changes_what_it_names_alone() -> None:
    full, quick = (_resolved("A.table2", "shapes", quick).parts["texts"] for quick in (False, True))
    assert quick.limit == 4 and quick.series["clip + random"].budgets == [120]
    assert quick.series["clip + ZO-2"].search == full.series["clip + ZO-2"].search
    assert recipe.resolved(recipe.load("A.table2"), "shapes", limit=2).parts["texts"].limit == 2


@pytest.mark.parametrize("name", ["A.figure4", "A.figure5", "A.figure12"])
def test_legends_lie_within_their_figures(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **_: saved.append(figure) or Path(path).touch())
    setting = _resolved(name, "shapes", False)
    figures.draw(fabricated(name, setting), setting, tmp_path)
    saved[0].canvas.draw()
    (legend,) = saved[0].legends
    box = legend.get_window_extent()
    assert box.x0 >= 0 and box.x1 <= saved[0].bbox.width


def test_the_frontier_is_what_no_cheaper_point_is_as_good_as() -> None:
    points = [(4.0, 0.5), (1.0, 0.2), (2.0, 0.6), (2.0, 0.1), (8.0, 0.9), (16.0, 0.7)]
    assert figures.frontier(points, lower=False) == [(1.0, 0.2), (2.0, 0.6), (8.0, 0.9), (16.0, 0.9)]
    assert figures.frontier(points, lower=True) == [(1.0, 0.2), (2.0, 0.1), (16.0, 0.1)]
