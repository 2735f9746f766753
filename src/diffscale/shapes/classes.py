"""The class-conditional view of Shapes: one object, its class its colour and shape, for ImageNet-like experiments."""

from __future__ import annotations

from random import Random
from typing import Final

from diffscale.shapes.scenes import COLOURS, SHAPES, Description, Scene, Spec, draw_scene

CLASSES: Final = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
"""The 48 class names; a class's id is its index."""


def class_description(label: int) -> Description:
    """What a picture of class `label` (0 to 47) shows; texture, size and place are open.

    Raises IndexError for another label.
    """
    if not 0 <= label < len(CLASSES):
        raise IndexError(f"Shapes has classes 0 to {len(CLASSES) - 1}, not {label}")
    colour, shape = CLASSES[label].split()
    return Description("numeracy", (Spec(shape, colour),))


def draw_class_scene(label: int, rng: Random) -> Scene:
    """A random scene of class `label`: one object."""
    return draw_scene(class_description(label), rng)
