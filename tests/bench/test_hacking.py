"""The warning that a search has hacked its verifier, on made-up samples."""

import numpy as np
import pytest

from diffscale.bench.hacking import hacked, sentence
from diffscale.bench.report import as_csv, summarise
from diffscale.bench.series import Cell

CELL = Cell("random", "clip", 80)
BIG = Cell("random", "clip", 1280)


def sample(cell, prompt, score, judge, other=(0.5, 0.5), **more):
    """Each of `score`, `judge` and `other` is (plain sample's, best's)."""
    ends = ("baseline", "best")
    values = {cell.verifier: score, "pick_score": other, "shapes-judge": judge}
    scores = {name: dict(zip(ends, each, strict=True)) for name, each in values.items()}
    return {
        "search": cell.search, "verifier": cell.verifier, "budget": cell.budget, "prompt": str(prompt), "repeat": 0,
        "score": scores[cell.verifier], "scores": scores,
        "members": [], "nfe": cell.budget, "network_forwards": 0, "flops": 0, "seconds": {}, "dropped": 0, **more,
    }  # fmt: skip


def test_a_judge_that_falls_while_the_score_rises_is_told():
    samples = [sample(CELL, i, (0.5, 0.7 + i / 100), (0.8, 0.6 + i / 100)) for i in range(10)]
    (fall,) = hacked(CELL, samples)
    assert fall["judge"] == "shapes-judge" and fall["since"] == 0
    assert fall["change"]["mean"] == pytest.approx(-0.155)
    assert "shapes-judge fell by 0.155" in sentence(CELL, fall)
    (row,) = summarise([CELL], samples, "shapes-judge")
    assert row["hacked"] == [fall]
    assert "shapes-judge" in as_csv([row])


@pytest.mark.parametrize(
    ("score", "judge"),
    [((0.5, 0.7), (0.6, 0.8)), ((0.5, 0.5), (0.8, 0.6)), ((0.7, 0.5), (0.8, 0.6))],
    ids=["both rise", "the score stays", "both fall"],
)
def test_nothing_else_is(score, judge):
    assert hacked(CELL, [sample(CELL, i, score, judge) for i in range(10)]) == []


def test_a_fall_within_noise_is_not_told():
    samples = [sample(CELL, i, (0.5, 0.7), (0.5, 0.9 if i % 2 else 0.0)) for i in range(10)]
    assert hacked(CELL, samples) == []


def test_a_fall_from_a_smaller_budget_is_told_though_it_ends_above_the_start():
    samples = [sample(CELL, i, (0.5, 0.7), (0.5, 0.9)) for i in range(10)]
    samples += [sample(BIG, i, (0.5, 0.8), (0.5, 0.7)) for i in range(10)]
    (fall,) = hacked(BIG, samples)
    assert fall["since"] == 80 and fall["change"]["mean"] == pytest.approx(-0.2)
    assert hacked(CELL, samples) == []


def test_other_verifiers_of_the_run_are_judges_too_but_never_the_one_searched_with():
    samples = [sample(CELL, i, (0.5, 0.7), (0.5, 0.5), other=(20.0, 18.0)) for i in range(10)]
    assert [fall["judge"] for fall in hacked(CELL, samples)] == ["pick_score"]
    oracle = Cell("random", "shapes-judge", 80)
    assert hacked(oracle, [sample(oracle, i, (0.5, 0.7), (0.8, 0.6)) for i in range(10)]) == []


def test_too_few_prompts_tell_nothing():
    samples = [sample(CELL, i, (0.5, 0.7), (0.8, 0.6)) for i in range(9)]
    assert hacked(CELL, samples) == []


def test_members_of_an_ensemble_are_not_held_out():
    both = Cell("random", "ensemble of=clip,shapes-judge", 80)
    samples = [sample(both, i, (0.2, 0.9), (0.8, 0.6), members=["clip", "shapes-judge"]) for i in range(10)]
    assert hacked(both, samples) == []


def test_pictures_that_a_judge_could_not_score_are_left_out():
    samples = [sample(CELL, i, (0.5, 0.7), (0.5, 0.5), other=(20.0, 18.0)) for i in range(12)]
    samples[0]["scores"]["pick_score"]["best"] = None
    del samples[1]["scores"]["pick_score"]
    assert [fall["judge"] for fall in hacked(CELL, samples)] == ["pick_score"]
    (row,) = summarise([CELL], samples)
    assert row["other_verifiers"]["pick_score"]["mean"] == 18


def test_noise_seldom_warns():
    """Of 60 cells whose judges are noise, at most a few: 5% would be 3, of which half are falls."""
    generator = np.random.default_rng(0)
    warned = 0
    for _ in range(60):
        draws = generator.normal(size=(20, 4))
        samples = [sample(CELL, i, (0.5, 0.7), tuple(d[:2]), other=tuple(d[2:])) for i, d in enumerate(draws)]
        warned += bool(hacked(CELL, samples))
    assert warned <= 5


def test_ranks_of_two_pools_are_not_compared():
    samples = [sample(CELL, i, (0.2, 0.9), (0.5, 0.9), members=["clip"]) for i in range(10)]
    samples += [sample(BIG, i, (0.2, 0.95), (0.5, 0.7), members=["clip"]) for i in range(10)]
    assert hacked(BIG, samples) == []
