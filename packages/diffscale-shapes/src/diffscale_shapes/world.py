"""Shapes as a plug-in: the world of its pictures."""

from collections.abc import Sequence
from functools import cache
from random import Random
from typing import Final

import numpy as np
import torch
from torch import Tensor

from diffscale_shapes.captions import other_wordings, parse_caption
from diffscale_shapes.judge import judge_image
from diffscale_shapes.render import render
from diffscale_shapes.scenes import CANVAS, CATEGORIES, CLASSES, draw_class_scene

_REFERENCE: Final = 10  # pictures a class of the reference


class ShapesWorld:
    """See `types.World`."""

    name = "shapes"
    judge_name = "shapes-judge"
    image_model = "shapes-flux"
    size = CANVAS, CANVAS
    categories = CATEGORIES

    def prompt_key(self, prompt: str) -> str | None:
        return meaning.key() if (meaning := parse_caption(prompt)) else None

    def wordings(self, prompt: str) -> Sequence[str]:
        return other_wordings(prompt)

    def category(self, prompt: str) -> str:
        return meaning.category if (meaning := parse_caption(prompt)) else ""

    def judge(self, images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        meanings = [parse_caption(prompt) for prompt in prompts]
        seen = [judge_image(x.permute(1, 2, 0).numpy(), m) for x, m in zip(images, meanings, strict=True) if m]
        columns = {"score": [each.score for each in seen], "cleanliness": [each.cleanliness for each in seen]}
        return {name: torch.tensor(values, dtype=torch.float64) for name, values in columns.items()}

    @staticmethod
    @cache
    def reference_pictures() -> Tensor:
        rng = Random("reproduce reference")
        scenes = [draw_class_scene(label, rng) for label in range(len(CLASSES)) for _ in range(_REFERENCE)]
        return torch.from_numpy(np.stack([render(scene) for scene in scenes])).permute(0, 3, 1, 2)


WORLD: Final = ShapesWorld()
