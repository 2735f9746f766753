"""The fixed prompts that figures are made on, as the plug-in offers them, and the training stream that avoids them."""

from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Final

from diffscale.types import ClassLabel
from diffscale_shapes.captions import write_caption
from diffscale_shapes.scenes import CATEGORIES, CLASSES, Description, Scene, draw_description, draw_scene

PER_CATEGORY: Final = {"shapes": 50, "shapes-mini": 10}
"""Prompts per category: 300 in `shapes`; `shapes-mini` is the first ten of each, 60."""


@dataclass(frozen=True)
class Prompt:
    """One evaluation prompt and what it means."""

    text: str
    description: Description


@cache
def suite(name: str = "shapes") -> tuple[Prompt, ...]:
    """The prompts of `shapes` (300) or `shapes-mini` (60), in the order of the categories; always the same.

    Raises KeyError for another name.
    """
    return tuple(prompt for category in CATEGORIES for prompt in _drawn(category)[: PER_CATEGORY[name]])


@cache
def _drawn(category: str) -> tuple[Prompt, ...]:
    rng = Random(f"shapes evaluation suite: {category}")
    found: dict[str, Prompt] = {}
    while len(found) < max(PER_CATEGORY.values()):
        description = draw_description(rng, category)
        # One object of one kind has so few descriptions that holding some out would take the words from training.
        if sum(spec.count for spec in description.specs) > 1 and description.key() not in found:
            found[description.key()] = Prompt(write_caption(description, rng), description)
    return tuple(found.values())


@cache
def held_out() -> frozenset[str]:
    """Keys of all descriptions of the suite: none of them may be trained on."""
    return frozenset(prompt.description.key() for prompt in suite("shapes"))


def training_example(rng: Random) -> tuple[Description, Scene]:
    """A random description that is not of the suite, of any category alike, and a scene of it."""
    while True:
        description = draw_description(rng, rng.choice(CATEGORIES))
        if description.key() not in held_out():
            return description, draw_scene(description, rng)


def class_prompts() -> list[str]:
    """The 48 classes of Shapes as prompts of a text-to-image model: a ClassLabel each, such as "a red circle"."""
    return [ClassLabel(f"{'an' if name[0] in 'aeiou' else 'a'} {name}", label) for label, name in enumerate(CLASSES)]


def shapes() -> list[str]:
    """The 300 prompts of the suite `shapes`, 50 of each category."""
    return [prompt.text for prompt in suite("shapes")]


def shapes_mini() -> list[str]:
    """The 60 prompts of the suite `shapes-mini`, the first ten of each category."""
    return [prompt.text for prompt in suite("shapes-mini")]
