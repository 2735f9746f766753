"""The suites of prompts, as the plug-in offers them."""

from __future__ import annotations

from diffscale.shapes.classes import CLASSES
from diffscale.shapes.suite import suite
from diffscale.types import ClassLabel


def class_prompts() -> list[str]:
    """The 48 classes of Shapes as prompts of a text-to-image model: a ClassLabel each, such as "a red circle"."""
    return [ClassLabel(f"{'an' if name[0] in 'aeiou' else 'a'} {name}", label) for label, name in enumerate(CLASSES)]


def shapes() -> list[str]:
    """The 300 prompts of the suite `shapes`, 50 of each category."""
    return [prompt.text for prompt in suite("shapes")]


def shapes_mini() -> list[str]:
    """The 60 prompts of the suite `shapes-mini`, the first ten of each category."""
    return [prompt.text for prompt in suite("shapes-mini")]
