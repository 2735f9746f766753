"""Self-supervised verifiers (paper A, Ma et al. 2025, section 3.2): does the picture keep what was predicted early?

The score is the cosine of a network's features of the finished picture and of the x0-prediction at a noise level of
about 0.4, which the sampler records on its way at no NFE.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
import transformers
from torch import Tensor
from torch.nn import functional as F

from diffscale.models.files import pretrained_network
from diffscale.types import InnerLevel, Verifier
from diffscale.verifiers.clip import MODEL as CLIP
from diffscale.verifiers.clip import Clip
from diffscale.verifiers.dino import MODEL as DINO
from diffscale.verifiers.dino import load_dino
from diffscale.verifiers.preprocess import Preprocessing

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


def clip_ssl(model: str = CLIP, level: InnerLevel = 0.4, *, device: Any = "cpu") -> Verifier:
    """Cosine of CLIP's features of the picture and of its x0-prediction at `level`; `model` is a CLIP."""
    return SelfSupervised("clip_ssl", Clip.load(model, device).features, level)


def dino_ssl(model: str = DINO, level: InnerLevel = 0.4, *, device: Any = "cpu") -> Verifier:
    """Cosine of DINOv2's class tokens of the picture and of its x0-prediction at `level`; `model` is a DINOv2."""
    return SelfSupervised("dino_ssl", load_dino(model, device=device), level)


def siglip_ssl(model: str = SIGLIP, level: InnerLevel = 0.4, *, device: Any = "cpu") -> Verifier:
    """Cosine of SigLIP's pooled features of the picture and of its x0-prediction at `level`; `model` is a SigLIP."""
    net = pretrained_network(transformers.SiglipVisionModel, model, "SigLIP", device)
    preprocessing = Preprocessing.load(model, "SigLIP")

    def features(images: Tensor) -> Tensor:
        # SigLIP's processor stretches, it does not cut.
        return net(pixel_values=preprocessing.stretch(images.to(device, torch.float32))).pooler_output  # type: ignore[no-any-return]

    return SelfSupervised("siglip_ssl", features, level)
