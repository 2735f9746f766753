"""Scenes, captions and suites: what is drawn is what is said, and nothing of the suite is trained on."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from random import Random

import pytest
from diffscale_shapes.captions import other_wordings, parse_caption, write_caption
from diffscale_shapes.judge import judge_image
from diffscale_shapes.negatives import describes, hard_negatives
from diffscale_shapes.prompts import held_out, suite, training_example
from diffscale_shapes.render import render
from diffscale_shapes.scenes import (
    CANVAS,
    CATEGORIES,
    CLASSES,
    COLOURS,
    MAX_COUNT,
    RADIUS,
    RELATIONS,
    SHAPES,
    SIZES,
    TEXTURES,
    Description,
    Obj,
    Spec,
    class_description,
    draw_class_scene,
    draw_description,
    draw_scene,
    related,
)
from hypothesis import given
from hypothesis import strategies as st

categories = st.sampled_from(CATEGORIES)
seeds = st.integers(0, 10**9)


@given(categories, seeds)
def test_a_scene_is_as_described_and_its_objects_stand_apart_on_the_canvas(category: str, seed: int) -> None:
    rng = Random(seed)
    description = draw_description(rng, category)
    scene = draw_scene(description, rng)
    assert describes(description, scene)
    for i, a in enumerate(scene):
        r = RADIUS[a.size]
        assert r < min(a.x, a.y)
        assert max(a.x, a.y) + r < CANVAS - 1
        for b in scene[:i]:
            reach = r + RADIUS[b.size] + 1
            assert abs(a.x - b.x) > reach or abs(a.y - b.y) > reach


@given(categories, seeds)
def test_reading_a_caption_gives_back_what_was_said(category: str, seed: int) -> None:
    rng = Random(seed)
    description = draw_description(rng, category)
    text = write_caption(description, rng)
    meaning = parse_caption(text.capitalize() + ".")
    assert meaning is not None
    assert meaning.key() == description.key()
    assert meaning.category == category
    assert len(re.findall(r"\w+|,", text)) <= 23


@given(categories, seeds)
def test_articles_and_plurals_are_right(category: str, seed: int) -> None:
    rng = Random(seed)
    text = write_caption(draw_description(rng, category), rng)
    assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", text)
    for piece in re.split(
        r", and |, | and | with | (?:to the )?(?:left|right) of | above | over | below | under ", text
    ):
        piece = piece.removeprefix("a picture of ").removeprefix("an image of ")
        number, *_, noun = piece.split()
        plural = {shape: shape + ("es" if shape == "cross" else "s") for shape in SHAPES}
        assert noun in (SHAPES if number in ("a", "an") else plural.values()), text


@pytest.mark.parametrize(
    "text",
    ["a red", "a crimson circle", "a red blue circle", "above a circle", "a dog", "a circle above", ""],
)
def test_what_the_grammar_lacks_is_not_read(text: str) -> None:
    assert parse_caption(text) is None


@given(st.tuples(seeds, st.sampled_from(RELATIONS)))
def test_telling_a_relation_from_the_other_side_is_the_same_description(drawn: tuple[int, str]) -> None:
    seed, relation = drawn
    first, second = draw_description(Random(seed), "spatial").specs
    opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}[relation]
    one = Description("spatial", (first, second), relation)
    assert one.key() == Description("spatial", (second, first), opposite).key()
    assert one.key() != Description("spatial", (second, first), relation).key()


def test_related_needs_the_dominant_axis() -> None:
    a = Obj("circle", "red", "solid", "small", 20, 20)
    assert related(a, replace(a, x=40, y=30), "left of")
    assert not related(a, replace(a, x=40, y=30), "above")
    assert not any(related(a, replace(a, x=40, y=40), relation) for relation in RELATIONS)


@given(categories, seeds)
def test_hard_negatives_are_false_of_the_scene(category: str, seed: int) -> None:
    rng = Random(seed)
    description = draw_description(rng, category)
    scene = draw_scene(description, rng)
    wrong = hard_negatives(description, scene, rng)
    assert wrong
    assert not any(describes(near, scene) for near in wrong)


def test_holds_needs_every_object_and_no_other() -> None:
    red = Obj("circle", "red", "solid", "small", 20, 20)
    two = Description("numeracy", (Spec("circle", "red", count=2),))
    assert describes(two, (red, replace(red, x=40)))
    assert not describes(two, (red,))
    assert not describes(two, (red, replace(red, x=40), replace(red, y=40)))
    assert not describes(two, (red, replace(red, colour="blue")))


def test_the_suites_are_fixed() -> None:
    assert len(suite("shapes")) == len({prompt.description.key() for prompt in suite("shapes")}) == 300
    assert len(suite("shapes-mini")) == 60
    assert set(suite("shapes-mini")) < set(suite("shapes"))
    text = "\n".join(prompt.text for prompt in suite("shapes"))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "fcfbfd357603198d"


def test_training_keeps_clear_of_the_suite_but_not_of_its_words_and_pairs() -> None:
    rng = Random(0)
    seen = [training_example(rng)[0] for _ in range(6000)]
    assert not held_out() & {description.key() for description in seen}
    specs = [spec for description in seen for spec in description.specs]
    assert {(spec.colour, spec.shape) for spec in specs} >= {(c, s) for c in COLOURS for s in SHAPES}
    for attribute, values in (("texture", TEXTURES), ("size", SIZES), ("count", range(1, MAX_COUNT + 1))):
        assert {getattr(spec, attribute) for spec in specs} >= set(values)
    assert {description.relation for description in seen} >= set(RELATIONS)
    evaluated = {s for prompt in suite("shapes") for s in prompt.description.specs}
    share = sum(spec in set(specs) for spec in evaluated) / len(evaluated)
    assert share > 0.95


def test_every_class_is_drawn_and_recognised() -> None:
    assert len(set(CLASSES)) == 48
    rng = Random(0)
    for label, name in enumerate(CLASSES):
        (obj,) = draw_class_scene(label, rng)
        assert f"{obj.colour} {obj.shape}" == name
        assert judge_image(render([obj]), class_description(label)).score == 1
        assert judge_image(render([obj]), class_description((label + 1) % 48)).score == 0


def test_other_labels_are_refused() -> None:
    with pytest.raises(IndexError, match="0 to 47"):
        class_description(48)


@given(categories, seeds)
def test_other_wordings_ask_for_the_same_in_other_words_and_are_always_the_same(category, seed):
    rng = Random(seed)
    description = draw_description(rng, category)
    text = write_caption(description, rng)
    found = other_wordings(text)
    assert found == other_wordings(text) and text not in found and len(set(found)) == len(found) <= 7
    assert {parse_caption(each).key() for each in found} == {description.key()}
    assert max(len(each.replace(",", " ,").split()) for each in found) <= 23  # what the networks read
    assert len(found) == 7 or category == "numeracy"


def test_what_the_grammar_cannot_read_has_no_other_wordings():
    assert other_wordings("a bear on a skateboard") == []
    assert set(other_wordings("a red circle")) == {"a picture of a red circle", "an image of a red circle"}
