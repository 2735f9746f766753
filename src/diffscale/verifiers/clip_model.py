"""CLIP as the verifiers see it: one loader, one path to the features of pictures and of texts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Self, cast

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import Parameter
from torch.nn import functional as F
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

from diffscale._util.errors import DiffscaleError
from diffscale.engine.flops import uncounted
from diffscale.models.locate import locate
from diffscale.verifiers.preprocess import prepare


@dataclass
class Clip:
    """A `CLIPModel` with its tokenizer and preprocessing. Text features are computed once per prompt."""

    net: Any
    tokenizer: Any
    side: int
    mean: list[float]
    std: list[float]
    _texts: dict[str, Tensor] = field(default_factory=dict, kw_only=True, repr=False)

    @classmethod
    def load(cls, model: str, device: Any = "cpu", processor: str | None = None) -> Self:
        """From a Hub id, a local folder or the name of a shipped model (`shapes-clip`).

        `processor`: where tokenizer and preprocessing lie, if not with the weights. Raises DiffscaleError if it cannot
        be loaded.
        """
        where = locate(model)
        beside = where if processor is None else locate(processor)
        try:
            net = CLIPModel.from_pretrained(where, dtype=torch.float32, use_safetensors=True)
            tokenizer = AutoTokenizer.from_pretrained(beside)
            images = AutoImageProcessor.from_pretrained(beside, backend="pil")
        except (OSError, ValueError, SafetensorError) as error:
            raise DiffscaleError(
                f"The CLIP model {model!r} could not be loaded: give a Hub id, a folder with config.json and "
                f"safetensors weights, or shapes-clip ({str(error).splitlines()[0]})."
            ) from error
        net.to(device).eval().requires_grad_(False)
        side = net.config.vision_config.image_size
        return cls(net, tokenizer, side, list(images.image_mean), list(images.image_std))

    def features(self, images: Tensor) -> Tensor:
        """Projected picture embeddings [B, D], not normalised, of `images` [B, 3, H, W] in [0, 1]."""
        pixels = self.pixels(images.to(self.net.device).float())
        return self.net.visual_projection(self.net.vision_model(pixel_values=pixels).pooler_output)

    def weights(self) -> list[Parameter]:
        """See `types.Refinable`: of the vision side, since text features are kept."""
        return [*self.net.vision_model.parameters(), *self.net.visual_projection.parameters()]

    def pixels(self, images: Tensor) -> Tensor:
        """What the vision tower takes, [B, 3, side, side], of `images` [B, 3, H, W] in [0, 1]."""
        return prepare(images, self.side, self.mean, self.std)

    def texts(self, prompts: list[str]) -> Tensor:
        """Projected text embeddings [B, D], not normalised."""
        return torch.stack([self._text(prompt) for prompt in prompts])

    def cosine(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Cosine similarity [B] of each picture and its prompt, in [-1, 1]."""
        return F.cosine_similarity(self.features(images), self.texts(prompts))

    @property
    def scale(self) -> Tensor:
        """The factor on cosines that the network was trained with: exp(logit_scale), a scalar."""
        return self.net.logit_scale.exp()

    @torch.no_grad()
    def encode(self, texts: list[str]) -> Tensor:
        """Projected text embeddings [B, D], not normalised and not kept."""
        length = self.net.config.text_config.max_position_embeddings
        # A text's embedding is read at its last token, which no padding after it changes.
        batch = self.tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors="pt")
        batch = batch.to(self.net.device)
        pooled = self.net.text_model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).pooler_output
        return cast(Tensor, self.net.text_projection(pooled))

    def _text(self, prompt: str) -> Tensor:
        if prompt not in self._texts:
            with uncounted():
                self._texts[prompt] = self.encode([prompt])[0]
        return self._texts[prompt]
