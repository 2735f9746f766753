"""CLIPScore (Hessel et al. 2021, equation 1): 2.5 max(cos, 0) of CLIP's picture and text embeddings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

from diffscale.errors import DiffscaleError
from diffscale.verifiers.preprocess import prepare
from diffscale.weights import locate


@dataclass
class ClipScore:
    """Verifier over a `CLIPModel`; scores lie in [0, 2.5], published CLIPs stay mostly within [0.3, 1].

    Differentiable in the pictures. Text features are computed once per prompt.
    """

    net: Any
    tokenizer: Any
    side: int
    mean: list[float]
    std: list[float]
    name: str = "clip"
    _texts: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def load(cls, model: str, device: Any = "cpu") -> ClipScore:
        """From a Hub id, a local folder or the name of a shipped model (`shapes-clip`).

        Raises DiffscaleError if it cannot be loaded.
        """
        where = locate(model)
        try:
            net = CLIPModel.from_pretrained(where, dtype=torch.float32, use_safetensors=True)
            tokenizer = AutoTokenizer.from_pretrained(where)
            processor = AutoImageProcessor.from_pretrained(where, backend="pil")
        except (OSError, ValueError, SafetensorError) as error:
            raise DiffscaleError(
                f"The CLIP model {model!r} could not be loaded: give a Hub id, a folder with config.json and "
                f"safetensors weights, or shapes-clip ({str(error).splitlines()[0]})."
            ) from error
        net.to(device).eval().requires_grad_(False)
        return cls(
            net,
            tokenizer,
            net.config.vision_config.image_size,
            list(processor.image_mean),
            list(processor.image_std),
        )

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Score [B] of `images` [B, 3, H, W] in [0, 1] for their prompts; higher is better."""
        texts = torch.stack([self._text(prompt) for prompt in prompts])
        return 2.5 * F.cosine_similarity(self.features(images), texts).clamp(min=0)

    def features(self, images: Tensor) -> Tensor:
        """Projected picture embeddings [B, D], not normalised, of `images` [B, 3, H, W] in [0, 1]."""
        device = next(self.net.parameters()).device
        pixels = prepare(images.to(device).float(), self.side, self.mean, self.std)
        return self.net.visual_projection(self.net.vision_model(pixel_values=pixels).pooler_output)

    @torch.no_grad()
    def _text(self, prompt: str) -> Tensor:
        if prompt not in self._texts:
            device = next(self.net.parameters()).device
            length = self.net.config.text_config.max_position_embeddings
            # Padding to the full length, as in training, costs little and keeps one shape for all prompts.
            batch = self.tokenizer(
                [prompt], padding="max_length", truncation=True, max_length=length, return_tensors="pt"
            ).to(device)
            pooled = self.net.text_model(**batch).pooler_output
            self._texts[prompt] = self.net.text_projection(pooled)[0]
        return self._texts[prompt]
