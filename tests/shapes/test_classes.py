"""Classes: 48 names, each scene one object of its class that the judge finds."""

from random import Random

import pytest

from diffscale.shapes.classes import CLASSES, class_description, draw_class_scene
from diffscale.shapes.judge import judge_image
from diffscale.shapes.render import render


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
