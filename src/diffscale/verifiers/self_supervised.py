"""Self-supervised verifiers (paper A, Ma et al. 2025, section 3.2): does the picture keep what was predicted early?

The score is the cosine of a network's features of the finished picture and of the x0-prediction at a noise level of
about 0.4, which the sampler records on its way at no NFE.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoImageProcessor, SiglipVisionModel

from diffscale.models.files import pretrained
from diffscale.models.locate import locate
from diffscale.types import Verifier
from diffscale.verifiers.clip_model import Clip
from diffscale.verifiers.dino import load_dino
from diffscale.verifiers.preprocess import stretch

CLIP: Final = "openai/clip-vit-large-patch14"
SIGLIP: Final = "google/siglip-so400m-patch14-384"


@dataclass
class SelfSupervised:
    """Verifier and `NeedsIntermediateX0`: cos of `features` [B, D] of a picture and its prediction at `record_level`.

    Scores lie in [-1, 1]; most trajectories that change little after that level have over 0.8. Conditions are not
    looked at. Differentiable in both pictures.
    """

    name: str
    features: Callable[[Tensor], Tensor]
    record_level: float

    def __call__(self, images: Tensor, prompts: list[str], *recorded: Tensor) -> Tensor:
        """Score [B] of `images` and of their `recorded` predictions, both [B, 3, H, W] in [0, 1]; higher is better."""
        (predicted,) = recorded
        return F.cosine_similarity(self.features(images), self.features(predicted))


def clip_ssl(model: str | None = None, level: float = 0.4, *, device: Any = "cpu", image_model: str = "") -> Verifier:
    """Cosine of CLIP's features of the picture and of its x0-prediction at `level`; `model` is a CLIP."""
    clip = Clip.load(model or ("shapes-clip" if image_model.startswith("shapes-") else CLIP), device)
    return SelfSupervised("clip_ssl", clip.features, level)


def dino_ssl(model: str | None = None, level: float = 0.4, *, device: Any = "cpu", image_model: str = "") -> Verifier:
    """Cosine of DINOv2's class tokens of the picture and of its x0-prediction at `level`; `model` is a DINOv2."""
    return SelfSupervised(
        "dino_ssl", load_dino(model or ("shapes-dino" if image_model.startswith("shapes-") else None), device), level
    )


def siglip_ssl(model: str | None = None, level: float = 0.4, *, device: Any = "cpu", image_model: str = "") -> Verifier:
    """Cosine of SigLIP's pooled features of the picture and of its x0-prediction at `level`; `model` is a SigLIP."""
    model = model or ("shapes-siglip" if image_model.startswith("shapes-") else SIGLIP)
    where = locate(model)
    net = pretrained(
        lambda: SiglipVisionModel.from_pretrained(where, dtype=torch.float32, use_safetensors=True), model, "SigLIP"
    )
    images = pretrained(lambda: AutoImageProcessor.from_pretrained(where, backend="pil"), model, "SigLIP")
    net.to(device).eval().requires_grad_(False)

    def features(pictures: Tensor) -> Tensor:
        # SigLIP's processor stretches, it does not cut.
        pixels = stretch(pictures.to(device).float(), images.size["height"], images.image_mean, images.image_std)
        return net(pixel_values=pixels).pooler_output  # type: ignore[no-any-return]

    return SelfSupervised("siglip_ssl", features, level)
