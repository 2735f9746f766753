"""Best-of-k over all subsets of a pool: against enumeration, the ensemble's ranks within each; and from a run."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from diffscale._util.errors import DiffscaleError
from diffscale.bench.papers import pools, session
from diffscale.bench.papers.plan import plan
from diffscale.bench.papers.points import points_of
from diffscale.bench.papers.recipe import Part, Setting
from diffscale.bench.papers.session import Session
from diffscale.models.options import LoadOptions

PART: dict[str, Any] = {
    "model": "shapes-sit-s", "prompts": "shapes-classes", "limit": 2, "repeats": 2, "steps": 1, "dtype": "float32",
    "judges": ["inception"],
}  # fmt: skip
SEARCH: dict[str, Any] = {"verifier": "clip_zeroshot", "budgets": [0, 4, 8]}


def mean_rank(pool: torch.Tensor) -> torch.Tensor:
    return pool.argsort(0).argsort(0).double().mean(1)


@pytest.mark.parametrize("k", [1, 2, 3, 6])
def test_the_expected_best_of_k_is_the_mean_over_all_subsets(k: int) -> None:
    rng = np.random.default_rng(k)
    scores, worth = rng.normal(size=(6, 3)), rng.normal(size=6)
    plain = [worth[max(each, key=lambda i: scores[i, 0])] for each in combinations(range(6), k)]
    assert pools.expected(scores, k, {"judge": worth}, None)["judge"] == pytest.approx(np.mean(plain))

    def chosen(each: tuple[int, ...]) -> float:
        ranks: NDArray[np.float64] = scores[list(each)].argsort(0).argsort(0).mean(1).round(12)
        return float(worth[each[int(ranks.argmax())]])

    ranked = [chosen(each) for each in combinations(range(6), k)]
    assert pools.expected(scores, k, {"judge": worth}, mean_rank)["judge"] == pytest.approx(np.mean(ranked))


def test_of_many_subsets_some_are_drawn_which_are_right_on_average() -> None:
    rng = np.random.default_rng(0)
    scores, worth = rng.normal(size=(40, 1)), rng.normal(size=40)
    exact = pools.expected(scores, 4, {"judge": worth}, None)["judge"]
    drawn = pools.expected(scores, 4, {"judge": worth}, lambda pool: pool[:, 0])["judge"]
    assert drawn == pytest.approx(exact, abs=4 * worth.std() / pools.SUBSETS**0.5)
    assert drawn == pools.expected(scores, 4, {"judge": worth}, lambda pool: pool[:, 0])["judge"]


def test_its_variance_is_less_than_that_of_the_first_k() -> None:
    rng = np.random.default_rng(1)
    scores = rng.normal(size=(2000, 16, 1))
    worth = scores[..., 0] + rng.normal(size=(2000, 16))
    for k in (1, 2, 4):
        single = [w[:k][s[:k, 0].argmax()] for s, w in zip(scores, worth, strict=True)]
        over = [pools.expected(s, k, {"judge": w}, None)["judge"] for s, w in zip(scores, worth, strict=True)]
        assert np.mean(over) == pytest.approx(np.mean(single), abs=0.12)
        assert np.var(over) < np.var(single) * 2 * k / 16


def test_a_run_takes_all_budgets_from_one_pool_and_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = Part(**PART, series={"search": {**SEARCH, "pool": True}})
    setting = Setting(view="table", parts={"classes": part})
    whole = plan([setting])
    assert whole.nfe().total() == 4 * 8  # no more than for the largest budget alone
    made = Session(tmp_path, LoadOptions(device="cpu"))
    session.run("T.pool", setting, made)
    raw = json.loads((tmp_path / "T.pool" / "raw.json").read_text())["parts"]["classes"]
    found = [row["scores"]["inception"] for row in raw["series"]["search"]]
    (file,) = tmp_path.glob("cache/*/pools.jsonl")
    judged = {line["name"]: np.array(line["scores"]) for line in map(json.loads, file.read_text().splitlines())}
    assert len(judged) == 4 and {len(each) for each in judged.values()} == {4}
    assert np.array(found[0]) == pytest.approx([each.mean() for each in judged.values()])
    samples = [json.loads(line) for line in next(tmp_path.glob("cache/*/samples.jsonl")).read_text().splitlines()]
    largest = [sample for sample in samples if sample["budget"] == 8]
    # The best of the whole pool is what the search itself found.
    best = [sample["scores"]["inception"]["best"] for sample in largest]
    assert np.array(found[2]) == pytest.approx(best, abs=2e-3)
    for sample, each, value in zip(largest, judged.values(), found[1], strict=True):
        score = [row[0] for row in sample["pool"]]
        pairs = [each[max(pair, key=lambda i, s=score: s[i])] for pair in combinations(range(4), 2)]
        assert value == pytest.approx(np.mean(pairs))
    # What was judged is judged once; a line that was cut off is made again.
    text = file.read_text()
    file.write_text(text[:-9])
    (tmp_path / "T.pool" / "raw.json").unlink()
    asked: list[int] = []
    own = pools.safe_score
    monkeypatch.setattr(pools, "safe_score", lambda *given: asked.append(len(given[1])) or own(*given))  # type: ignore
    session.run("T.pool", setting, Session(tmp_path, LoadOptions(device="cpu")))
    assert asked == [4] and file.read_text() == text


def test_pools_are_of_random_search_and_of_scores_alone() -> None:
    wrong: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"search": "zero_order n=2"}, {}), ({"steps": 1, "final": [2]}, {}), ({}, {"sets": ["is"]}),
    ]  # fmt: skip
    for series, more in wrong:
        part = Part(**PART, **more, series={"search": {**SEARCH, **series, "pool": True}})
        with pytest.raises(DiffscaleError, match="come from pools"):
            points_of(part, part.series["search"])
