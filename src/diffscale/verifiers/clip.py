"""CLIPScore (Hessel et al. 2021, equation 1): 2.5 max(cos, 0) of CLIP's picture and text embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from diffscale.types import Verifier
from diffscale.verifiers.clip_model import Clip


@dataclass
class ClipScore(Clip):
    """Verifier over a `CLIPModel`; scores lie in [0, 2.5], published CLIPs stay mostly within [0.3, 1].

    Differentiable in the pictures. Text features are computed once per prompt.
    """

    name: str = "clip"

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Score [B] of `images` [B, 3, H, W] in [0, 1] for their prompts; higher is better."""
        return 2.5 * self.cosine(images, prompts).clamp(min=0)


def clip(model: str | None = None, *, device: Any = "cpu", image_model: str = "") -> Verifier:
    """CLIPScore, 2.5 max(cos, 0), of picture and prompt; `model` is a CLIP by Hub id, folder or name."""
    if model is None:
        model = "shapes-clip" if image_model.startswith("shapes-") else "openai/clip-vit-large-patch14"
    return ClipScore.load(model, device=device)
