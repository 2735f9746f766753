"""Any image classifier of transformers in the place of InceptionV3, as shapes-inception is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AutoImageProcessor, AutoModelForImageClassification

from diffscale._util.errors import DiffscaleError
from diffscale._util.fingerprints import network_digest
from diffscale.models.files import pretrained
from diffscale.verifiers.preprocess import stretch


@dataclass
class Classifier:
    """An image classifier `net` of transformers with its preprocessing: features, logits and probabilities.

    `order`: the output that class i has, int64 [classes], here i. `name` says the network and its weights. Pictures of
    any shape are stretched to `side`. Differentiable in the pictures.
    """

    net: Any
    side: int
    mean: list[float]
    std: list[float]
    order: Tensor
    name: str

    def __call__(self, images: Tensor) -> Tensor:
        """Features [B, D] of `images` [B, 3, H, W] in [0, 1]: pooled, as the last layer reads them."""
        body = getattr(self.net, self.net.base_model_prefix)
        out = body(pixel_values=self._pixels(images))
        pooled = getattr(out, "pooler_output", None)
        return (out.last_hidden_state[:, 0] if pooled is None else pooled).flatten(1)

    def logits(self, images: Tensor) -> Tensor:
        """Logits [B, classes] of `images`."""
        return self.net(pixel_values=self._pixels(images)).logits

    def probabilities(self, images: Tensor) -> Tensor:
        """Probabilities [B, classes] of `images`; rows add up to 1."""
        return self.logits(images).softmax(-1)

    def _pixels(self, images: Tensor) -> Tensor:
        return stretch(images.to(self.net.device).float(), self.side, self.mean, self.std)


def load_classifier(where: str, device: Any = "cpu") -> Classifier:
    """The classifier of a folder in transformers' layout; raises DiffscaleError if it cannot be loaded."""
    net = pretrained(
        lambda: AutoModelForImageClassification.from_pretrained(where, dtype=torch.float32, use_safetensors=True),
        where,
        "image classifier",
    )
    images = pretrained(lambda: AutoImageProcessor.from_pretrained(where, backend="pil"), where, "image classifier")
    crop = getattr(images, "crop_size", None) or images.size
    if "height" not in crop:
        raise DiffscaleError(f"The preprocessing in {where} states no height in crop_size or size; add it.")
    net.to(device).eval().requires_grad_(False)
    order = torch.arange(net.config.num_labels)
    name = f"inception {network_digest(net)}"
    return Classifier(net, crop["height"], list(images.image_mean), list(images.image_std), order, name)
