"""How much of a searched gain held-out judges keep, on made-up samples."""

import numpy as np
import pytest
from test_hacking import CELL, sample

from diffscale._util.errors import DiffscaleError
from diffscale.bench.hacking import hacked, kept, spread
from diffscale.bench.report import as_csv, summarise
from diffscale.bench.series import Cell
from diffscale.metrics.bootstrap import ratio


def drawn(n=40, seed=0, **more):
    """Samples of `n` prompts whose judge gains something too."""
    rng = np.random.default_rng(seed)
    made = []
    for i in range(n):
        first, judge = rng.normal(), rng.normal()
        gains = first + rng.normal(2, 0.5), judge + rng.normal(1, 0.5)
        more_of = {"spread": float(rng.uniform(0.5, 2)), **more}
        made.append(sample(CELL, i, (first, gains[0]), (judge, gains[1]), **more_of))
    return made


def by_hand(samples):
    """What the caption says, in a loop: judged gain over searched gain, each in its standard deviations."""
    judged = [s["scores"]["shapes-judge"] for s in samples]
    deviation = np.std([each["baseline"] for each in judged])
    searched = np.mean([(s["score"]["best"] - s["score"]["baseline"]) / s["spread"] for s in samples])
    return np.mean([(each["best"] - each["baseline"]) / deviation for each in judged]) / searched


def test_it_is_what_the_caption_says():
    samples = drawn()
    shares = kept(CELL, samples)
    assert shares["shapes-judge"]["mean"] == pytest.approx(by_hand(samples))
    assert shares["shapes-judge"]["low"] < by_hand(samples) < shares["shapes-judge"]["high"]
    (row,) = summarise([CELL], samples, "shapes-judge")
    assert row["kept"] == shares and "kept.shapes-judge_low" in as_csv([row])
    assert "pick_score" not in shares  # all its plain samples are alike, so it has no deviation to count in


def test_a_picture_that_is_only_good_to_the_verifier_keeps_nothing_and_units_do_not_count():
    samples = drawn()
    flat = [s | {"scores": {"shapes-judge": {"baseline": i, "best": i}}} for i, s in enumerate(samples)]
    assert kept(CELL, flat)["shapes-judge"] == {"mean": 0, "low": 0, "high": 0}
    scaled = []
    for s in samples:
        score = {end: 100 * value for end, value in s["score"].items()}
        judge = {end: 7 * value - 3 for end, value in s["scores"]["shapes-judge"].items()}
        scaled.append(s | {"score": score, "spread": 100 * s["spread"], "scores": {"shapes-judge": judge}})
    assert kept(CELL, scaled)["shapes-judge"]["mean"] == pytest.approx(by_hand(samples))


@pytest.mark.parametrize(
    "changed",
    [
        {"score": {"best": 0.0, "baseline": 0.0}},
        {"score": {"best": 0.0, "baseline": 1.0}},
        {"spread": 0.0},
        {"spread": None},
        {"choose": "shapes-judge"},
        {"choose": "ensemble of=clip,shapes-judge", "choose_members": ["clip", "shapes-judge"]},
        {"members": ["shapes-judge"]},
        {"error": "It failed, so mend it."},
    ],
    ids=str,
)
def test_where_nothing_was_gained_or_held_out_nothing_is_said(changed):
    assert "shapes-judge" not in kept(CELL, [s | changed for s in drawn()])


def test_samples_of_before_have_no_spread_and_are_reported_as_ever():
    samples = drawn()
    for s in samples:
        del s["spread"]
    (row,) = summarise([CELL], samples, "shapes-judge")
    assert row["kept"] == {} and row["judge"]["mean"] > row["judge_baseline"]["mean"]


def test_a_chooser_is_no_held_out_judge():
    falling = [sample(CELL, i, (0.5, 0.7), (0.8, 0.6)) for i in range(10)]
    ends = {"best": 0.6, "baseline": 0.8}
    assert hacked(CELL, falling)
    for choose, members in (("shapes-judge", []), ("ensemble of=clip,shapes-judge", ["clip", "shapes-judge"])):
        chosen = [s | {"choose": choose, "choose_members": members, "value": ends} for s in falling]
        assert hacked(CELL, chosen) == []
        (row,) = summarise([CELL], chosen, "shapes-judge")
        assert row["judge_searched_with"] and row["choose"] == choose
        assert row["value"]["mean"] == pytest.approx(0.6) and row["baseline_value"]["mean"] == pytest.approx(0.8)


def test_repeats_of_a_prompt_are_one():
    samples = drawn(12)
    repeated = [s | {"repeat": r} for s in samples for r in range(3)]
    assert kept(CELL, repeated)["shapes-judge"] == pytest.approx(kept(CELL, samples)["shapes-judge"])
    assert kept(Cell("fk", "clip", 80), samples) == {}


def test_a_ratio_of_means_has_the_interval_of_a_normal_one():
    """Against the delta method: the deviation of a ratio of means of pairs that are not independent."""
    rng = np.random.default_rng(1)
    below = rng.normal(2, 0.5, 400)
    above = 0.6 * below + rng.normal(0, 0.3, 400)
    found, r = ratio(above, below), above.mean() / below.mean()
    error = np.std(above - r * below) / below.mean() / len(below) ** 0.5
    assert found["mean"] == pytest.approx(r)
    assert found["low"] == pytest.approx(r - 1.96 * error, abs=0.2 * error)
    assert found["high"] == pytest.approx(r + 1.96 * error, abs=0.2 * error)
    assert ratio([1.0], [4.0]) == {"mean": 0.25, "low": 0.25, "high": 0.25}
    with pytest.raises(DiffscaleError, match="at least one pair"):
        ratio([], [])


def test_the_spread_of_equal_values_is_0():
    assert spread([0.1] * 3) == spread([]) == spread([2.0]) == 0 and spread([0.0, 2.0]) == 1
