"""DINO-LinearHead (Ma et al. 2025): DINOv2 with the published linear ImageNet head as verifier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from diffscale._util.errors import DiffscaleError
from diffscale.types import Verifier
from diffscale.verifiers.classes import Output, class_ids, class_scores
from diffscale.verifiers.dino import Dino, load_dino


@dataclass
class DinoLinear:
    """Verifier over a `Dino` with a linear head: what it says of the conditioning class.

    Log probabilities are at most 0, and mostly within [-12, 0] with 1000 classes; `logit` is what Ma et al. search
    with. Differentiable in the pictures.
    """

    dino: Dino
    output: Output = "logit"
    name: str = "dino_linear"

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Score [B] of `images` [B, 3, H, W] in [0, 1] for their classes; higher is better."""
        ids = class_ids(prompts, self.dino.classes, self.name)
        return class_scores(self.dino.logits(images), ids, self.output)


def dino_linear(
    model: str | None = None,
    output: Output = "logit",
    *,
    device: Any = "cpu",
    image_model: str = "",
) -> Verifier:
    """DINOv2's linear head: logit of the class; `model` is a Hub id, folder or name.

    Raises DiffscaleError for weights that cannot be loaded or have no head.
    """
    if model is None and image_model.startswith("shapes-"):
        model = "shapes-dino"
    dino = load_dino(model, device)
    if not dino.classes:
        raise DiffscaleError(
            f"The DINOv2 {model!r} has no linear head: give one of the facebook/dinov2-...-imagenet1k-1-layer, or a "
            "folder with a Dinov2ForImageClassification."
        )
    return DinoLinear(dino, output)
