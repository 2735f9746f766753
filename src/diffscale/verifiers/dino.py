"""DINOv2 (Oquab et al. 2023, arXiv 2304.07193) for verifiers and metrics, and DINO-LinearHead (Ma et al. 2025)."""

from typing import Any, Final

import torch
import transformers
from torch import Tensor

from diffscale._util.errors import DiffscaleError
from diffscale.models.files import pretrained
from diffscale.types import Verifier
from diffscale.verifiers.classes import ClassVerifier, Output, PretrainedClassifier

MODEL: Final = "facebook/dinov2-large-imagenet1k-1-layer"
"""ViT-L/14 with the published linear head on the last layer's class token and mean patch token."""


class Dino(PretrainedClassifier):
    """A DINOv2 of transformers, with or without a linear head.

    Features are the class token after the last norm, of whole pictures, stretched as for FD-DINOv2 (Stein et al. 2023,
    github.com/layer6ai-labs/dgm-eval).
    """

    def logits(self, images: Tensor) -> Tensor:
        """Logits [B, classes] of the middle of `images`, as the published head was trained and measured."""
        if not len(self.order):
            raise DiffscaleError(
                "This DINOv2 has no linear head and knows no classes: give one with a head, such as " + MODEL + "."
            )
        return self.net(pixel_values=self.preprocessing.crop(images.to(self.net.device, torch.float32))).logits


def load_dino(model: str = MODEL, *, device: Any = "cpu") -> Dino:
    """A DINOv2 in transformers' layout, by Hub id, folder or name; by default ViT-L/14 with its ImageNet head.

    The folder has config.json, model.safetensors and preprocessor_config.json; a linear head is loaded if its config
    names an ImageClassification architecture. Raises DiffscaleError if it cannot be loaded.
    """
    config = pretrained(transformers.AutoConfig, model, "DINOv2 model")
    if not config.model_type.startswith("dinov2"):
        raise DiffscaleError(f"{model!r} is a {config.model_type}, not a DINOv2 model.")
    has_head = any(kind.endswith("ForImageClassification") for kind in config.architectures or [])
    family = transformers.AutoModelForImageClassification if has_head else transformers.AutoModel
    return Dino.load(family, model, "DINOv2 model", device, "dino")


def dino_linear(model: str = MODEL, output: Output = "logit", *, device: Any = "cpu") -> Verifier:
    """DINOv2's linear head: logit of the class; `model` is a Hub id, folder or name.

    `logit` is what Ma et al. search with. Raises DiffscaleError for weights that cannot be loaded or have no head.
    """
    dino = load_dino(model, device=device)
    if not len(dino.order):
        raise DiffscaleError(
            f"The DINOv2 {model!r} has no linear head: give one of the facebook/dinov2-...-imagenet1k-1-layer, or a "
            "folder with a Dinov2ForImageClassification."
        )
    return ClassVerifier(dino, output, "dino_linear")
