"""Reading prompts: those of T2I-CompBench by hand, and every caption of Shapes."""

from __future__ import annotations

import re
from random import Random

import pytest
from diffscale_shapes.captions import write_caption
from diffscale_shapes.scenes import draw_description
from hypothesis import example, given
from hypothesis import strategies as st

from diffscale.verifiers.phrases import read_prompt, singular


@pytest.mark.parametrize(
    ("prompt", "phrases"),
    [
        ("a green bench and a red car", ["a green bench", "a red car"]),
        ("A metallic desk lamp and a fluffy blanket.", ["a metallic desk lamp", "a fluffy blanket"]),
        ("The black chair was on top of the white table.", ["the black chair", "the white table"]),
        (
            "The round, juicy watermelon sat in the cool, refreshing bowl of ice.",
            ["the round, juicy watermelon", "the cool, refreshing bowl", "ice"],
        ),
        ("a wooden chair and leather jacket", ["a wooden chair", "leather jacket"]),
        ("a tall tree, a short bush and a tiny flower", ["a tall tree", "a short bush", "a tiny flower"]),
        ("a photo of a black and white cat", ["a black and white cat"]),
        ("a woman is wearing a hat and reading a book", ["a woman", "a hat", "a book"]),
        ("Two people are shaking hands and laughing", ["two people", "hands"]),
        ("a man holds a cup", ["a man", "a cup"]),
        ("a dog sits on a mat", ["a dog", "a mat"]),
        ("dogs chasing cats", ["dogs", "cats"]),
        ("a bright shining star", ["a bright shining star"]),
        ("a blue building next to a painting", ["a blue building", "a painting"]),
        ("the dog is brown and the cat is white", ["the dog", "the cat"]),
        ("a girl with flowing hair", ["a girl", "flowing hair"]),
        ("it is there", []),
    ],
)
def test_noun_phrases(prompt: str, phrases: list[str]) -> None:
    assert [phrase.text for phrase in read_prompt(prompt).phrases] == phrases


@pytest.mark.parametrize(
    ("prompt", "relation"),
    [
        ("a dog on the left of a car", ("dog", "left", "car")),
        ("a girl on the right of a horse", ("girl", "right", "horse")),
        ("a bird on the top of a chair", ("bird", "above", "chair")),
        ("The red hat was on top of the brown coat rack", ("red hat", "above", "brown coat rack")),
        ("a key on the bottom of a bag", ("key", "below", "bag")),
        ("a chicken near a book", ("chicken", "near", "book")),
        ("a cat next to a sofa", ("cat", "near", "sofa")),
        ("a man on side of a woman", ("man", "near", "woman")),
        ("a green bench and a red car", None),
    ],
)
def test_relations(prompt: str, relation: tuple[str, str, str] | None) -> None:
    found = read_prompt(prompt).relation
    assert (found and (found[0].object, found[1], found[2].object)) == relation


@pytest.mark.parametrize(
    ("prompt", "counts"),
    [
        ("three cats, 12 dogs and a bird", [("cat", 3), ("dog", 12), ("bird", 1)]),
        ("the two small boxes", [("small box", 2)]),
        ("red apples", [("red apple", None)]),
        ("both men", [("man", None)]),
    ],
)
def test_counts(prompt: str, counts: list[tuple[str, int | None]]) -> None:
    assert [(phrase.object, phrase.count) for phrase in read_prompt(prompt).phrases] == counts


@pytest.mark.parametrize(
    ("plural", "one"),
    [
        ("dogs", "dog"),
        ("boxes", "box"),
        ("crosses", "cross"),
        ("cherries", "cherry"),
        ("knives", "knife"),
        ("mice", "mouse"),
        ("horses", "horse"),
        ("tomatoes", "tomato"),
        ("glass", "glass"),
        ("cactus", "cactus"),
        ("bus", "bus"),
        ("sheep", "sheep"),
    ],
)
def test_singular(plural: str, one: str) -> None:
    assert singular(plural) == one == singular(one)


@given(
    st.sampled_from(["colour", "shape", "texture", "spatial", "numeracy", "complex"]),
    st.integers(0, 2**32),
)
def test_captions_of_shapes_are_read_as_they_were_meant(category: str, seed: int) -> None:
    rng = Random(seed)
    meant = draw_description(rng, category)
    found = read_prompt(write_caption(meant, rng))
    assert [(phrase.noun, phrase.count) for phrase in found.phrases] == [(s.shape, s.count) for s in meant.specs]
    for phrase, spec in zip(found.phrases, meant.specs, strict=True):
        assert spec.colour is None or spec.colour in phrase.name
    relation = None if meant.relation is None else meant.relation.removesuffix(" of")
    assert (found.relation and found.relation[1]) == relation
    assert not found.actions


WORDS = ["a", "the", "two", "red", "dogs", "is", "on", ",", "and", "running", "sits"]


@example("¹&B")
@given(st.text(max_size=60) | st.lists(st.sampled_from(WORDS)).map(" ".join))
def test_any_text_is_read_and_nothing_is_made_up(prompt: str) -> None:
    words = set(re.findall(r"[\w'-]+|,", prompt.lower().replace("’", "'")))
    for phrase in read_prompt(prompt).phrases:
        assert set(re.findall(r"[\w'-]+|,", phrase.text)) <= words
