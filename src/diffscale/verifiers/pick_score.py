"""PickScore (Kirstain et al. 2023, arXiv 2305.01569): a CLIP ViT-H/14 trained on people's choices of two pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from torch import Tensor

from diffscale.types import Verifier
from diffscale.verifiers.clip import Clip
from diffscale.verifiers.defaults import default_model

MODEL: Final = "yuvalkirstain/PickScore_v1"
PROCESSOR: Final = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
"""Where the published tokenizer and preprocessing lie, as the model's page says."""


@dataclass
class PickScore(Clip):
    """Verifier over a `CLIPModel`: exp(logit_scale) cos, with a trained scale of about 100.

    Scores lie in [-100, 100] and mostly within [16, 26]; the softmax of two pictures' scores is the probability that
    people choose one over the other for the prompt. Differentiable in the pictures.
    """

    name: str = "pick_score"

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Score [B] of `images` [B, 3, H, W] in [0, 1] for their prompts; higher is better."""
        return self.scale * self.cosine(images, prompts)


def pick_score(
    model: str | None = None, processor: str | None = None, *, device: Any = "cpu", image_model: str = ""
) -> Verifier:
    """PickScore: what people choose, of picture and prompt; `model` is a CLIP by Hub id, folder or name.

    `processor`: where tokenizer and preprocessing lie, if not with the weights. Raises DiffscaleError for weights that
    cannot be loaded.
    """
    model = model or default_model(image_model, "pick_score", MODEL)
    return PickScore.load(model, device, processor or (PROCESSOR if model == MODEL else None))
