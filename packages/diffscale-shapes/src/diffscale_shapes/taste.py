"""What the made-up raters of Shapes like: hidden rules that the trained verifiers learn from noisy answers.

The rules are stated here for whoever reads, and hidden from the networks, which see pictures and answers only. All take
the objects of a picture, as read or as drawn. Every rater is blind to something, as people are.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from random import Random
from typing import Final, Literal

from diffscale_shapes.judge import score_objects
from diffscale_shapes.scenes import ATTRIBUTES, CANVAS, COLOURS, RADIUS, Description, Obj

_WHEEL: Final = tuple(colour for colour in COLOURS if colour != "white")  # in the order of their hues


def balance(objects: Sequence[Obj]) -> float:
    """1 where the objects' common centre, weighted by area, is the canvas's, falling to 0 at a quarter of its side."""
    if not objects:
        return 0.0
    mass = [RADIUS[obj.size] ** 2 for obj in objects]
    x = sum(m * obj.x for m, obj in zip(mass, objects, strict=True)) / sum(mass)
    y = sum(m * obj.y for m, obj in zip(mass, objects, strict=True)) / sum(mass)
    middle = (CANVAS - 1) / 2
    return max(0.0, 1 - math.hypot(x - middle, y - middle) / (CANVAS / 4))


def harmony(objects: Sequence[Obj]) -> float:
    """How well the colours go together, in [0, 1]: the mean over pairs of objects, 0.5 for one object.

    A pair counts 1 if its hues are the same or neighbours, 0.8 if opposite, 0.6 if one is white, else 0.1.
    """
    if len(objects) < 2:
        return 0.5 if objects else 0.0
    values = [_harmony_of_two(a.colour, b.colour) for a, b in combinations(objects, 2)]
    return sum(values) / len(values)


def beauty(objects: Sequence[Obj]) -> float:
    """The aesthetic rule, 1 to 10: half layout (`balance`), half colour (`harmony`). No prompt enters."""
    return 1 + 9 * (balance(objects) + harmony(objects)) / 2


def variety(objects: Sequence[Obj]) -> float:
    """How unlike the objects are, in [0, 1]: the mean over pairs of the share of attributes that differ."""
    if len(objects) < 2:
        return 0.0
    differ = [sum(getattr(a, n) != getattr(b, n) for n in ATTRIBUTES) for a, b in combinations(objects, 2)]
    return sum(differ) / len(differ) / len(ATTRIBUTES)


@dataclass(frozen=True)
class Rater:
    """Who chooses between two pictures of a prompt.

    `blind`: "texture" raters see neither texture nor size, "place" raters do not see where objects stand. The other
    numbers weigh, against one another, how well the picture fits the prompt, how clean and how beautiful it is (each
    in [0, 1]); `lapse` is the share of choices made at random.
    """

    blind: Literal["texture", "place"]
    fit: float
    clean: float
    beautiful: float
    lapse: float

    def understands(self, description: Description) -> Description:
        """What the rater understands of a description."""
        if self.blind == "place":
            # Without the relation two of the categories are judged as colours are.
            return replace(description, relation=None)
        return replace(description, specs=tuple(replace(s, texture=None, size=None) for s in description.specs))

    def utility(self, objects: list[Obj], cleanliness: float, description: Description) -> float:
        """The utility of a picture for a prompt; differences of it are log-odds of being chosen."""
        fit = score_objects(objects, self.understands(description))
        return self.fit * fit + self.clean * cleanliness + self.beautiful * (beauty(objects) - 1) / 9

    def chooses_first(self, first: float, second: float, rng: Random) -> bool:
        """Whether a picture of utility `first` is chosen over one of `second` this time."""
        if rng.random() < self.lapse:
            return rng.random() < 0.5
        return rng.random() < 1 / (1 + math.exp(second - first))


REWARD_RATER: Final = Rater("texture", fit=6.0, clean=2.0, beautiful=1.0, lapse=0.1)
"""Whose choices train shapes-reward."""

PICK_RATER: Final = Rater("place", fit=4.0, clean=2.0, beautiful=2.5, lapse=0.1)
"""Whose choices train shapes-pick."""

ASPECTS: Final = ("accuracy", "creativity", "quality", "consistency")
"""Of the LLM grader's five aspects those that a scene of Shapes can have; emotional resonance is not one of them."""


def draw_grades(objects: list[Obj], cleanliness: float, fit: float, description: Description, rng: Random) -> list[int]:
    """One grader's marks, 0 to 10, for `ASPECTS` and overall, noisy and with a mood that all marks share.

    accuracy: the judge's score; creativity: `variety`; quality: cleanliness; consistency: half `harmony`, half `fit`,
    the mean fit of the objects to what the renderer draws, in [0, 1]; overall: their mean, accuracy counted twice.
    """
    accuracy = score_objects(objects, description)
    true = [accuracy, variety(objects), cleanliness, (harmony(objects) + fit) / 2]
    true.append((sum(true) + accuracy) / 5)
    mood = rng.gauss(0, 0.7)
    return [round(min(max(10 * value + mood + rng.gauss(0, 1.5), 0), 10)) for value in true]


def _harmony_of_two(a: str, b: str) -> float:
    if "white" in (a, b):
        return 0.6
    apart = abs(_WHEEL.index(a) - _WHEEL.index(b))
    apart = min(apart, len(_WHEEL) - apart)
    return {0: 1.0, 1: 1.0, 2: 0.1, 3: 0.8}[apart]
