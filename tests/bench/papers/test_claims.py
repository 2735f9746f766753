"""Tests that recipes name, on raw numbers with known answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from diffscale._util.errors import DiffscaleError
from diffscale.bench.papers import claims, numbers
from diffscale.bench.papers.recipe import Claim
from diffscale.bench.papers.verdicts import decide

CATEGORIES = ["one", "two"]


def _raw(means: dict[str, Any], n: int = 40, repeats: int = 2) -> dict[str, Any]:
    """A series each, whose only point has that mean, or those of the two categories."""
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.05, (len(means), n, repeats))
    categories = [CATEGORIES[i // 2 % 2] for i in range(n)]
    series = {}
    for (name, mean), each in zip(means.items(), noise, strict=True):
        by = mean if isinstance(mean, dict) else dict.fromkeys(CATEGORIES, mean)
        values = each + np.array([by[category] for category in categories])[:, None]
        series[name] = [
            {"nfe": 20, "flops": len(name), "search_nfe": 0, "scores": {"judge": values.ravel().tolist()}, "sets": {}}
        ]
    part = {"prompts": list(map(str, range(n))), "categories": categories, "repeats": repeats, "series": series}
    return {"item": "T", "parts": {"p": part}}


def _verdict(raw: dict[str, Any], test: str, **options: Any) -> str:
    return decide([claims.test_claim(Claim(says="so", test=test, options=options), raw)])[0][0]


def _compare(raw: dict[str, Any], a: str, b: str, how: str, **more: float) -> str:
    return _verdict(raw, "compare", all_of=[{"a": ["p", a], "b": ["p", b], "measure": "judge", "is": how, **more}])


def test_comparisons() -> None:
    raw = _raw({"low": 0.2, "high": 0.6, "same": 0.61})
    assert _compare(raw, "high", "low", "better") == "holds"
    assert _compare(raw, "low", "high", "better") == "does not hold"
    assert _compare(raw, "high", "low", "better", margin=0.5) == "does not hold"
    assert _compare(raw, "same", "high", "equal", margin=0.05) == "holds"
    assert _compare(raw, "high", "low", "equal", margin=0.05) == "does not hold"
    assert _compare(raw, "low", "high", "not_better", margin=0.03) == "holds"
    assert _compare(raw, "high", "low", "not_better", margin=0.03) == "does not hold"


def test_a_metric_that_falls_is_better_lower() -> None:
    raw = _raw({"a": 0, "b": 0})
    for name, value in (("a", 2.0), ("b", 5.0)):
        without = (value + np.random.default_rng(1).normal(0, 0.01, (1, 8))).tolist()
        raw["parts"]["p"]["series"][name][0]["sets"] = {"fid": {"value": value, "without": without}}
    options = {"all_of": [{"a": ["p", "a"], "b": ["p", "b"], "measure": "fid", "is": "better"}]}
    assert _verdict(raw, "compare", **options) == "holds"
    one, other = (numbers.point(raw, "p", name) for name in "ab")
    assert one.gain(other, "fid", True)["mean"] == pytest.approx(60)


def test_repeats_of_a_prompt_are_no_independent_samples() -> None:
    raw = _raw({"a": 0.0, "b": 0.0}, n=8, repeats=50)
    one, other = (numbers.point(raw, "p", name) for name in "ab")
    assert one.by_prompt("judge").shape == (8,)
    assert one.difference(other, "judge").freedom == 7


def test_a_sweet_spot_lies_between_the_ends() -> None:
    of = {"part": "p", "series": ["left", "middle", "right"], "measure": "judge"}
    assert _verdict(_raw({"left": 0.2, "middle": 0.6, "right": 0.3}), "sweet_spot", **of) == "holds"
    assert _verdict(_raw({"left": 0.2, "middle": 0.4, "right": 0.6}), "sweet_spot", **of) == "does not hold"


def test_verifiers_disagree_where_two_change_places() -> None:
    of = {"part": "p", "series": ["a", "b"], "measure": "judge", "categories": CATEGORIES}
    crossed = _raw({"a": {"one": 0.6, "two": 0.2}, "b": {"one": 0.2, "two": 0.6}})
    assert _verdict(crossed, "disagree", **of) == "holds"
    # One that is better everywhere changes places with none.
    assert _verdict(_raw({"a": 0.6, "b": 0.2}), "disagree", **of) == "does not hold"


def test_the_ensemble_may_be_the_worst() -> None:
    of = {"part": "p", "one": "e", "others": ["a", "b"], "measure": "judge", "categories": CATEGORIES, "margin": 0.03}
    assert _verdict(_raw({"e": 0.4, "a": 0.2, "b": 0.6}), "never_worst", **of) == "holds"
    worst = _raw({"e": {"one": 0.4, "two": 0.1}, "a": 0.3, "b": 0.6})
    assert _verdict(worst, "never_worst", **of) == "does not hold"


def _halves(raw: dict[str, Any], name: str, chosen: float, tested: float) -> None:
    """Another mean for the prompts that are chosen on than for those that are tested on."""
    scores = raw["parts"]["p"]["series"][name][0]["scores"]
    values = np.array(scores["judge"]).reshape(-1, 2)
    values[::2] += chosen
    values[1::2] += tested
    scores["judge"] = values.ravel().tolist()


def test_a_wrong_choice_refutes_nothing() -> None:
    """That something exists is refuted where nothing is such, not where what was chosen is not."""
    of = {"part": "p", "series": ["left", "lucky", "good", "right"], "measure": "judge"}
    raw = _raw({"left": 0.3, "lucky": 0.0, "good": 0.6, "right": 0.3})
    _halves(raw, "lucky", 0.9, 0.0)
    assert _verdict(raw, "sweet_spot", **of) == "not decided"
    of = {"part": "p", "one": "e", "others": ["a", "b"], "measure": "judge", "categories": CATEGORIES, "margin": 0.03}
    raw = _raw({"e": 0.35, "a": 0.1, "b": 0.2})
    _halves(raw, "a", 0.0, 0.8)
    assert _verdict(raw, "never_worst", **of) == "not decided"


def test_cheaper_needs_both_a_gain_and_a_lower_cost() -> None:
    raw = _raw({"s": 0.6, "large": 0.3, "larger": 0.9})  # costs are as long as the names
    at = {"measure": "judge"}
    assert _verdict(raw, "cheaper", a=["p", "s"], b=["p", "large"], **at) == "holds"
    assert _verdict(raw, "cheaper", a=["p", "s"], b=["p", "larger"], **at) == "does not hold"
    assert _verdict(raw, "cheaper", a=["p", "larger"], b=["p", "s"], **at) == "does not hold"


def test_correlations_are_within_prompts() -> None:
    rng = np.random.default_rng(2)
    level, x = rng.normal(0, 10, (40, 1)), rng.normal(size=(40, 12))
    raw = _raw({"none": 0.0}, repeats=1)
    raw["parts"]["p"]["pairs"] = {
        "x": (x + level).tolist(),
        "y": (x + rng.normal(size=x.shape)).tolist(),
        "z": (rng.normal(size=x.shape) + level).tolist(),
    }
    assert _verdict(raw, "correlated", part="p", of=["x", "y"]) == "holds"
    # Over all candidates x and z are alike, since prompts differ; within prompts they are not.
    assert _verdict(raw, "uncorrelated", part="p", of=["x", "z"], margin=0.2) == "holds"
    assert _verdict(raw, "uncorrelated", part="p", of=["x", "y"], margin=0.2) == "does not hold"


def test_a_claim_that_does_not_fit_is_told() -> None:
    raw = _raw({"a": 0.1})
    with pytest.raises(DiffscaleError, match="no series 'b'"):
        _compare(raw, "a", "b", "better")
    with pytest.raises(DiffscaleError, match="did you mean 'compare'"):
        claims.test_claim(Claim(says="so", test="compares"), raw)
    with pytest.raises(DiffscaleError, match="cannot be tested"):
        _verdict(raw, "sweet_spot", series=["a"])
    with pytest.raises(DiffscaleError, match=r"cannot be tested.*margn"):
        _compare(raw, "a", "a", "better", margn=0.1)
    with pytest.raises(DiffscaleError, match="a margin over 0"):
        _compare(raw, "a", "a", "equal")


def test_what_matters_decides_where_there_is_nothing() -> None:
    raw = _raw({"a": 0.2, "b": 0.2, "c": 0.6})
    assert _compare(raw, "a", "b", "better") == "not decided"
    assert _compare(raw, "a", "b", "better", matters=0.1) == "does not hold"
    assert _compare(raw, "c", "b", "better", matters=0.1) == "holds"


def test_of_fixed_prompts_only_what_differs_within_them_is_chance() -> None:
    raw = _raw({"a": {"one": 0.9, "two": 0.2}, "b": 0.3}, repeats=4)
    at = {"a": ["p", "a"], "b": ["p", "b"], "measure": "judge", "is": "better", "matters": 0.1}
    one, other = (claims.compare(raw, [at | more]).effects[0] for more in ({}, {"fixed": True}))
    assert one.contrast.estimate == pytest.approx(other.contrast.estimate)
    assert other.contrast.error < one.contrast.error / 5 and other.contrast.freedom == 40 * 3


def test_trainings_are_compared_over_seeds_and_prompts() -> None:
    better = {f"ours #{seed}": 0.6 for seed in range(4)}
    raw = _raw({**better, **{f"theirs #{seed}": 0.4 for seed in range(3)}, "base": 0.4})
    of = {"measure": "judge", "is": "better", "matters": 0.1}
    assert (
        _verdict(
            raw, "trained", part="p", all_of=[{"a": "ours", "b": "theirs", **of}, {"a": "ours", "b": "base", **of}]
        )
        == "holds"
    )
    assert _verdict(raw, "trained", part="p", all_of=[{"a": "theirs", "b": "base", **of}]) == "does not hold"
    together = claims.trained(raw, "p", [{"a": ["ours", "theirs"], "b": "base", **of}])
    assert together.effects[0].contrast.estimate == pytest.approx((4 * 0.2 + 3 * 0) / 7, abs=0.01)
    # What one lucky training gains, and three do not, is no gain of the method.
    lucky = _raw({"ours #0": 0.9, "ours #1": 0.4, "ours #2": 0.4, "ours #3": 0.4, "base": 0.4})
    assert _verdict(lucky, "trained", part="p", all_of=[{"a": "ours", "b": "base", **of}]) == "not decided"


def test_scaling_is_a_rise_with_every_doubling() -> None:
    raw = _raw({"first": 0.1, "then": 0.3, "last": 0.5})
    rows = [row for name in ("first", "then", "last") for row in raw["parts"]["p"]["series"][name]]
    for row, budget in zip(rows, (0, 40, 80), strict=True):
        row["search_nfe"] = budget
    raw["parts"]["p"]["series"]["s"] = rows
    of = {"part": "p", "series": "s", "first": 20}
    evidence = claims.scaling(raw, measures={"judge": 0.05}, **of)
    assert evidence.effects[0].contrast.estimate == pytest.approx(0.2, abs=0.02)  # from 20 over 40 to 80 NFE
    assert _verdict(raw, "scaling", measures={"judge": 0.05}, **of) == "holds"
    raw["parts"]["p"]["series"]["s"] = [{**rows[0], "search_nfe": budget} for budget in (0, 40, 80)]
    assert _verdict(raw, "scaling", measures={"judge": 0.05}, **of) != "holds"


def test_a_mean_of_comparisons_is_in_units_of_what_matters() -> None:
    raw = _raw({"a": 0.5, "b": 0.4, "c": 0.45})
    pairs = [("a", "b", 0.05), ("c", "b", 0.1)]
    of = [{"a": ["p", a], "b": ["p", b], "measure": "judge", "matters": m} for a, b, m in pairs]
    found = claims.mean_of(raw, of).effects[0].contrast
    assert found.estimate == pytest.approx((2 + 0.5) / 2, abs=0.25) and found.freedom == 39
