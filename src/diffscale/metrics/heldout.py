"""What judges that took no part in a search say of a picture."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from diffscale.shapes.captions import parse_caption
from diffscale.shapes.judge import judge_image
from diffscale.shapes.scenes import CANVAS


def heldout_scores(model: str, prompt: str, images: dict[str, Tensor]) -> dict[str, dict[str, float]]:
    """Judge scores in [0, 1] of named pictures [3, H, W] in [0, 1] of `prompt`; empty where no judge can tell.

    The judge of Shapes speaks of prompts in its grammar and pictures of the shipped models, in their own size.
    """
    meaning = parse_caption(prompt)
    if meaning is None or not Path(model).name.startswith("shapes-"):
        return {}
    if any(image.shape != (3, CANVAS, CANVAS) for image in images.values()):
        return {}
    verdicts = {name: judge_image(image.permute(1, 2, 0).numpy(), meaning) for name, image in images.items()}
    return {name: {"score": seen.score, "cleanliness": seen.cleanliness} for name, seen in verdicts.items()}
