"""The made-up raters: values by hand, what they are blind to, and how often they err."""

from __future__ import annotations

import math
from random import Random

import pytest
import torch
from diffscale_shapes.captions import parse_caption
from diffscale_shapes.prompts import held_out
from diffscale_shapes.scenes import CATEGORIES, Obj, draw_description, draw_scene
from diffscale_shapes.taste import PICK_RATER, REWARD_RATER, balance, beauty, draw_grades, harmony, variety
from diffscale_shapes.train.blip import matching_example
from diffscale_shapes.train.generated import ShownPicture
from diffscale_shapes.train.raters import draw_pairs
from hypothesis import given
from hypothesis import strategies as st

RED = Obj("circle", "red", "solid", "small", 16, 32)


def at(x: int, y: int, colour: str = "red", size: str = "small", **more: str) -> Obj:
    return Obj(more.get("shape", "circle"), colour, more.get("texture", "solid"), size, x, y)


def test_balance_is_by_area() -> None:
    assert balance([]) == 0
    assert balance([at(16, 32), at(47, 31)]) == pytest.approx(1)
    # 144 at 16 and 64 at 48 are 6.85 left of the middle, of 16 that are allowed.
    assert balance([at(16, 31, size="large"), at(48, 32)]) == pytest.approx(
        1 - math.hypot((144 * 16 + 64 * 48) / 208 - 31.5, (144 * 31 + 64 * 32) / 208 - 31.5) / 16
    )
    assert balance([at(10, 10)]) == 0


def test_harmony_is_by_hue() -> None:
    assert harmony([]) == 0 and harmony([RED]) == 0.5
    assert harmony([RED, at(0, 0, "orange")]) == harmony([RED, at(0, 0, "purple")]) == 1
    assert harmony([RED, at(0, 0, "yellow")]) == 0.1
    assert harmony([RED, at(0, 0, "green")]) == 0.8
    assert harmony([RED, at(0, 0, "white"), at(0, 0, "orange")]) == pytest.approx((0.6 + 1 + 0.6) / 3)


@given(st.integers(0, 10**6))
def test_all_rules_stay_in_their_range_and_heed_no_order(seed: int) -> None:
    rng = Random(seed)
    scene = list(draw_scene(draw_description(rng, rng.choice(CATEGORIES)), rng))
    turned = scene[::-1]
    for rule, low, high in ((balance, 0, 1), (harmony, 0, 1), (variety, 0, 1), (beauty, 1, 10)):
        assert low <= rule(scene) <= high
        assert rule(scene) == pytest.approx(rule(turned))


def test_each_rater_is_blind_to_something() -> None:
    description = parse_caption("a striped red circle to the left of a small blue square")
    assert description is not None
    good = [at(16, 32, texture="striped"), at(47, 31, "blue", shape="square")]
    plain = [at(16, 32), good[1]]
    swapped = [at(47, 31, texture="striped"), at(16, 32, "blue", shape="square")]
    assert REWARD_RATER.utility(good, 1, description) == REWARD_RATER.utility(plain, 1, description)
    assert REWARD_RATER.utility(good, 1, description) > REWARD_RATER.utility(swapped, 1, description)
    assert PICK_RATER.utility(good, 1, description) == PICK_RATER.utility(swapped, 1, description)
    assert PICK_RATER.utility(good, 1, description) > PICK_RATER.utility(plain, 1, description)


def test_choices_follow_bradley_and_terry_but_for_lapses() -> None:
    rng = Random(0)
    chosen = sum(REWARD_RATER.chooses_first(1.0, 0.0, rng) for _ in range(20_000)) / 20_000
    assert chosen == pytest.approx(0.1 * 0.5 + 0.9 / (1 + math.exp(-1)), abs=0.01)


def test_grades_are_whole_numbers_around_the_truth() -> None:
    description = parse_caption("a red circle")
    assert description is not None
    rng = Random(0)
    given = torch.tensor([draw_grades([RED], 0.8, 0.9, description, rng) for _ in range(3000)], dtype=torch.float64)
    assert given.min() >= 0 and given.max() <= 10
    # accuracy 1 and variety 0 are cut at the ends of the scale; the others lie at 8, 7 and (1 + 1 + 0 + 0.8 + 0.7) / 5.
    assert given[:, 0].mean() > 9 and given[:, 1].mean() < 1
    torch.testing.assert_close(given[:, 2:].mean(0), torch.tensor([7.9, 7.0, 7.0]).double(), atol=0.12, rtol=0)


def test_a_meaning_is_for_training_or_for_measuring_and_no_pair_mixes_prompts() -> None:
    picture = torch.zeros(3, 64, 64, dtype=torch.uint8)
    rng = Random(1)
    groups = []
    for number in range(200):
        description = draw_description(rng, rng.choice(CATEGORIES))
        groups.append(
            [ShownPicture(str(number), description, picture, [RED] * (copy % 2), 1.0, 1.0) for copy in range(3)]
        )
    told, held = draw_pairs(groups, REWARD_RATER, Random(0))
    assert len(told) + len(held) == 600 and 20 <= len(held) <= 130
    meanings = [{pair.chosen.description.key() for pair in some} for some in (told, held)]
    assert not meanings[0] & meanings[1]
    for pair in told:
        assert pair.chosen.prompt == pair.other.prompt
        utility = [REWARD_RATER.utility(one.objects, 1.0, one.description) for one in (pair.chosen, pair.other)]
        assert pair.margin == pytest.approx(utility[0] - utility[1])


def test_what_blip_is_told_is_never_of_the_suite() -> None:
    rng = Random(0)
    for _ in range(1500):
        _, captions = matching_example(rng)
        for caption in captions:
            meaning = parse_caption(caption)
            assert meaning is not None and meaning.key() not in held_out()
