"""ImageReward's network from transformers' BLIP, with the published names mapped to transformers'."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

from diffscale._util.errors import DiffscaleError, first_line
from diffscale.models.files import renamed
from diffscale.verifiers.head import SIZES, Head
from diffscale.verifiers.preprocess import CLIP_MEAN, CLIP_STD

PUBLISHED: Final[dict[str, Any]] = {
    "vision_config": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 224,
        "patch_size": 16,
        "layer_norm_eps": 1e-6,
    },
    "text_config": {
        "vocab_size": 30524,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "max_position_embeddings": 512,
        "layer_norm_eps": 1e-12,
    },
    "head": list(SIZES),
    "mean": 0.16717362830052426,
    "std": 1.0333394966054072,
    "max_length": 35,
    "image_mean": CLIP_MEAN,
    "image_std": CLIP_STD,
}
"""The published network: ViT-L/16 and BERT as in med_config.json, and how pictures, texts and ratings are scaled.

Source: github.com/THUDM/ImageReward, ImageReward/ImageReward.py and models/BLIP; github.com/salesforce/BLIP,
models/vit.py.
"""

KEYS: Final = (
    (r"^blip\.visual_encoder\.cls_token$", "vision.embeddings.class_embedding"),
    (r"^blip\.visual_encoder\.pos_embed$", "vision.embeddings.position_embedding"),
    (r"^blip\.visual_encoder\.patch_embed\.proj\.", "vision.embeddings.patch_embedding."),
    (r"^blip\.visual_encoder\.norm\.", "vision.post_layernorm."),
    (r"^blip\.visual_encoder\.blocks\.", "vision.encoder.layers."),
    (r"^(vision\..*)\.norm([12])\.", r"\1.layer_norm\2."),
    (r"^(vision\..*)\.attn\.qkv\.", r"\1.self_attn.qkv."),
    (r"^(vision\..*)\.attn\.proj\.", r"\1.self_attn.projection."),
    (r"^blip\.text_encoder\.", "text."),
    (r"^mlp\.", "head."),
)
"""Published names and those of `ImageRewardNet`; below `text.` both follow BERT, and layouts agree everywhere."""

UNUSED: Final = re.compile(r"^blip\.(vision_proj|text_proj)\.|\.position_ids$")
"""In the published file, but no part of the score: BLIP's contrastive projections and a buffer of old libraries."""


class ImageRewardNet(nn.Module):
    """Pictures and tokens to ratings, not yet normalised. `config` has the keys of `PUBLISHED`.

    The sizes are those of `BlipVisionConfig`, `BlipTextConfig` and `Head`. Raises DiffscaleError for a config that
    lacks a key or does not fit together.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        missing = sorted(PUBLISHED.keys() - config.keys())
        if missing:
            raise DiffscaleError(f"The config of an ImageReward network lacks {', '.join(missing)}.")
        self.config = dict(config)
        try:
            vision = BlipVisionConfig(**config["vision_config"])
            text = BlipTextConfig(**{**config["text_config"], "encoder_hidden_size": vision.hidden_size})
            self.vision = BlipVisionModel(vision)
            self.text = BlipTextModel(text, add_pooling_layer=False)
        except (TypeError, ValueError) as error:
            raise DiffscaleError(f"The config of an ImageReward network is wrong: {first_line(error)}") from error
        self.head = Head(config["head"])

    def forward(self, pixels: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """Ratings [B] of normalised `pixels` [B, 3, side, side], `tokens` and their attention `mask`, int64 [B, L]."""
        return self.rate(self.vision(pixel_values=pixels).last_hidden_state, tokens, mask)[:, 0]

    def rate(self, seen: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """The head's outputs [B, K], K its last width, for vision features `seen` [B, N, D] and texts [B, L]."""
        read = self.text(
            input_ids=tokens,
            attention_mask=mask,
            encoder_hidden_states=seen,
            encoder_attention_mask=torch.ones(seen.shape[:2], dtype=torch.long, device=seen.device),
        ).last_hidden_state
        return self.head(read[:, 0])


def translate(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A published state dict in the names of `ImageRewardNet`, see `KEYS`, without what takes no part in the score."""
    return renamed({name: value for name, value in state.items() if not UNUSED.search(name)}, KEYS)
