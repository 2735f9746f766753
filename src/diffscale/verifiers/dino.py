"""DINOv2 (Oquab et al. 2023, arXiv 2304.07193) as verifiers and metrics see it: one loader, features and logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification

from diffscale._util.errors import DiffscaleError
from diffscale._util.fingerprints import network_digest
from diffscale.models.files import pretrained
from diffscale.models.locate import locate
from diffscale.verifiers.preprocess import prepare, stretch

MODEL: Final = "facebook/dinov2-large-imagenet1k-1-layer"
"""ViT-L/14 with the published linear head on the last layer's class token and mean patch token."""


@dataclass
class Dino:
    """A DINOv2 `net` of transformers, with or without a linear head, and its preprocessing.

    `edge` and `side`: the pixels that the shorter edge is resized to and that are cut out of the middle. `name` says
    the network and its weights. Differentiable in the pictures.
    """

    net: Any
    side: int
    edge: int
    mean: list[float]
    std: list[float]
    name: str

    def __call__(self, images: Tensor) -> Tensor:
        """Features [B, D]: the class token after the last norm, of whole pictures [B, 3, H, W] in [0, 1].

        Pictures are stretched to `side`, as for FD-DINOv2 (Stein et al. 2023, github.com/layer6ai-labs/dgm-eval).
        """
        pixels = stretch(self._here(images), self.side, self.mean, self.std)
        backbone = getattr(self.net, self.net.base_model_prefix, self.net)
        return backbone(pixel_values=pixels).last_hidden_state[:, 0]

    def logits(self, images: Tensor) -> Tensor:
        """Logits [B, classes] of the middle of `images`, as the published head was trained and measured."""
        if not self.classes:
            raise DiffscaleError(
                "This DINOv2 has no linear head and knows no classes: give one with a head, such as " + MODEL + "."
            )
        return self.net(pixel_values=prepare(self._here(images), self.side, self.mean, self.std, self.edge)).logits

    @property
    def classes(self) -> int:
        """How many classes the linear head tells apart; 0 without one."""
        head = getattr(self.net, "classifier", None)
        return getattr(head, "out_features", 0)

    def _here(self, images: Tensor) -> Tensor:
        return images.to(self.net.device).float()


def load_dino(model: str | None = None, device: Any = "cpu") -> Dino:
    """A DINOv2 in transformers' layout, by Hub id, folder or name; by default ViT-L/14 with its ImageNet head.

    The folder has config.json, model.safetensors and preprocessor_config.json; a linear head is loaded if its config
    names an ImageClassification architecture. Raises DiffscaleError if it cannot be loaded.
    """
    model = model or MODEL
    where = locate(model)
    config = pretrained(lambda: AutoConfig.from_pretrained(where), model, "DINOv2 model")
    if not config.model_type.startswith("dinov2"):
        raise DiffscaleError(f"{model!r} is a {config.model_type}, not a DINOv2 model.")
    has_head = any(kind.endswith("ForImageClassification") for kind in config.architectures or [])
    family = AutoModelForImageClassification if has_head else AutoModel
    net = pretrained(
        lambda: family.from_pretrained(where, dtype=torch.float32, use_safetensors=True), model, "DINOv2 model"
    )
    images = pretrained(lambda: AutoImageProcessor.from_pretrained(where, backend="pil"), model, "DINOv2 model")
    net.to(device).eval().requires_grad_(False)
    side, edge = images.crop_size["height"], images.size["shortest_edge"]
    name = f"dino {network_digest(net)}"
    return Dino(net, side, edge, list(images.image_mean), list(images.image_std), name)
