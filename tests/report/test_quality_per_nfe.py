"""`benchmarks/quality_per_nfe.py` compares searches with random search by what is worked out by hand."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import quality_per_nfe as quality

from diffscale.metrics.bootstrap import interval

PROMPTS = 40
ONE = np.ones(PROMPTS)


def row(search: str, nfe: int, seconds: float, judge: Any, first: Any = 0.2) -> dict[str, Any]:
    values = {
        "judge": judge * ONE,
        "score": 10 * judge * ONE,
        "first_judge": first * ONE,
        "first_score": 10 * first * ONE,
    }
    return {"search": search, "budget": nfe, "nfe": float(nfe), "failed": 0, "seconds": seconds * ONE, **values}


# One sample, of 20 NFE, takes a second.
RANDOM = [row("random", 320, 16.0, 0.6), row("random", 80, 4.0, 0.4)]


@pytest.mark.parametrize(
    ("seconds", "there", "outside"),
    [
        (1.0, 0.2, ""),
        (2.0, 0.3, ""),
        (4.0, 0.4, ""),
        (8.0, 0.5, ""),
        (16.0, 0.6, ""),
        (40.0, 0.6, "<"),
        (0.5, 0.2, ">"),
    ],
)
def test_random_search_is_met_in_as_many_seconds(seconds: float, there: float, outside: str) -> None:
    found = quality.in_equal_seconds(row("mine", 80, seconds, 0.7), RANDOM)
    assert found["outside"] == outside
    assert found["judge_in_seconds"] == pytest.approx(dict.fromkeys(("mean", "low", "high"), 0.7 - there))
    assert found["score_in_seconds"] == pytest.approx(dict.fromkeys(("mean", "low", "high"), 7 - 10 * there))


def test_its_interval_is_that_of_paired_prompts_and_their_seconds() -> None:
    draw = np.random.default_rng(1)
    hard, noise = draw.normal(size=PROMPTS), 0.1 * draw.normal(size=PROMPTS)
    random = [row("random", 80, 4.0, 0.4 + hard), row("random", 320, 16.0, 0.6 + hard, 0.2 + hard)]
    mine = row("mine", 80, 8.0, 0.7 + hard + noise)
    wanted = interval(0.2 + noise)
    assert quality.in_equal_seconds(mine, random)["judge_in_seconds"] == pytest.approx(wanted, abs=0.006)
    # Seconds that differ by prompt are drawn with it: four times as many are 0.2 of the judge.
    mine = row("mine", 80, np.where(np.arange(PROMPTS) < PROMPTS // 2, 4.0, 12.0), 0.7 + hard)
    found = quality.in_equal_seconds(mine, random)["judge_in_seconds"]
    seconds = interval(mine["seconds"])
    low, high = (0.7 - 0.4 - 0.1 * np.log2(seconds[each] / 4) for each in ("high", "low"))
    assert [found["low"], found["high"]] == pytest.approx([low, high], abs=0.006)
    assert quality.in_equal_seconds(random[1], random)["judge_in_seconds"] == pytest.approx(
        dict.fromkeys(("mean", "low", "high"), 0.0), abs=1e-9
    )


@pytest.mark.parametrize(("score", "told"), [(5.0, "0.200"), (3.0, "0.400"), (7.0, "<0.100"), (1.0, ">0.500")])
def test_the_judge_is_compared_where_random_search_has_the_same_own_score(score: float, told: str) -> None:
    mine = row("mine", 80, 4.0, 0.7) | {"score": score * ONE}
    amount = told.lstrip("<>")
    assert quality.at_equal_score(mine, RANDOM) == {"at_score": f"{told} [{amount}, {amount}]"}


def test_a_cell_that_failed_is_not_compared() -> None:
    assert quality.in_equal_seconds({"failed": 2}, RANDOM) == {}
    assert quality.in_equal_seconds(row("mine", 80, 1.0, 0.7), [*RANDOM, {"failed": 1}]) == {}
    assert quality.at_equal_score({"failed": 2}, RANDOM) == {}


def test_searches_are_shown_by_their_effect_and_those_too_slow_last() -> None:
    rows = [*RANDOM, row("slow", 80, 99.0, 0.99), row("weak", 80, 4.0, 0.3), row("strong", 80, 4.0, 0.5)]
    rows += [row("strong", 320, 99.0, 0.1), row("failed", 80, 4.0, 0.9) | {"failed": 1}]
    shown = quality.differences([each | quality.in_equal_seconds(each, RANDOM) for each in rows], "judge")
    assert list(shown) == ["strong", "weak", "slow"]
    assert list(shown["strong"]) == ["80 NFE", "320 NFE"]
    for search, budget, nfe, seconds, beyond in (
        ("strong", 80, 0.1, 0.1, 0),
        ("strong", 320, -0.5, -0.5, 1),
        ("weak", 80, -0.1, -0.1, 0),
        ("slow", 80, 0.59, 0.39, 1),
    ):
        equal, in_seconds = shown[search][f"{budget} NFE"]
        assert (equal["mean"], in_seconds["mean"], in_seconds["beyond"]) == pytest.approx((nfe, seconds, beyond))
