"""ImageReward (Xu et al. 2023, arXiv 2304.05977): BLIP reads picture and prompt together, a head rates the pair.

The network is made of transformers' BLIP, and the published names are mapped to transformers'.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, cast

import torch
import transformers
from torch import Tensor, nn
from torch.nn import Parameter

from diffscale._util.errors import DiffscaleError, explained
from diffscale.models.files import fetch, load_into, load_state, pretrained, renamed, saved_config
from diffscale.verifiers.aesthetic import HEAD, Head
from diffscale.verifiers.preprocess import CLIP_MEAN, CLIP_STD, Preprocessing

MODEL: Final = "THUDM/ImageReward"
FILE: Final = "ImageReward.pt"
TOKENIZER: Final = "google-bert/bert-base-uncased"
"""ImageReward adds [DEC] and [ENC] to this vocabulary, and its texts use neither."""


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
    "head": list(HEAD),
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
        with explained("The config of an ImageReward network is wrong: {why}", TypeError, ValueError):
            vision = transformers.BlipVisionConfig(**config["vision_config"])
            text = transformers.BlipTextConfig(**{**config["text_config"], "encoder_hidden_size": vision.hidden_size})
            self.vision = transformers.BlipVisionModel(vision)
            self.text = transformers.BlipTextModel(text, add_pooling_layer=False)
        self.head = Head(config["head"])

    def forward(self, pixels: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """Ratings [B] of normalised `pixels` [B, 3, side, side], `tokens` and their attention `mask`, int64 [B, L]."""
        return self.rate(self.vision(pixel_values=pixels).last_hidden_state, tokens, mask)[:, 0]

    def rate(self, seen: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """The head's outputs [B, K], K its last width, for vision features `seen` [B, N, D] and texts [B, L]."""
        return self.head(self.read(seen, tokens, mask))

    def read(self, seen: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """What the head is given [B, D] of vision features `seen` [B, N, D] and texts [B, L]."""
        read = self.text(
            input_ids=tokens,
            attention_mask=mask,
            encoder_hidden_states=seen,
            encoder_attention_mask=torch.ones(seen.shape[:2], dtype=torch.long, device=seen.device),
        ).last_hidden_state
        return cast(Tensor, read[:, 0])


def translate(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A published state dict in the names of `ImageRewardNet`, see `KEYS`, without what takes no part in the score."""
    return renamed({name: value for name, value in state.items() if not UNUSED.search(name)}, KEYS)


@dataclass
class ImageReward:
    """Verifier over an `ImageRewardNet`: (rating - mean) / std, as published.

    Roughly standard normal over generated pictures: from about -2.3 (bad) to 2 (good). Pictures are cut to their middle
    square. Differentiable in the pictures. Tokens are computed once per prompt; features depend on the picture.
    """

    net: ImageRewardNet
    tokenizer: Any
    name: str = "image_reward"
    _tokens: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Score [B] of `images` [B, 3, H, W] in [0, 1] for their prompts; higher is better."""
        return self._scaled(self.net(*self.prepared(images, prompts)))

    def view(self, images: Tensor, prompts: list[str]) -> Tensor:
        """See `types.Teachable`: what the head is given, and the score, [B, D + 1]."""
        pixels, tokens, mask = self.prepared(images, prompts)
        read = self.net.read(self.net.vision(pixel_values=pixels).last_hidden_state, tokens, mask)
        return torch.cat([read, self._scaled(self.net.head(read)[:, :1])], -1)

    def _scaled(self, rating: Tensor) -> Tensor:
        return (rating - self.net.config["mean"]) / self.net.config["std"]

    def weights(self) -> list[Parameter]:
        """See `types.Refinable`: of all but the vision tower, which its authors kept fixed for the most part, too."""
        return [*self.net.text.parameters(), *self.net.head.parameters()]

    def prepared(self, images: Tensor, prompts: list[str]) -> tuple[Tensor, Tensor, Tensor]:
        """What the network takes: pixels [B, 3, side, side], token ids and attention mask [B, max_length]."""
        config, device = self.net.config, self.net.vision.device
        preprocessing = Preprocessing(config["vision_config"]["image_size"], config["image_mean"], config["image_std"])
        pixels = preprocessing.crop(images.to(device, torch.float32))
        tokens, mask = zip(*(self._tokenized(prompt) for prompt in prompts), strict=True)
        return pixels, torch.stack(tokens).to(device), torch.stack(mask).to(device)

    def _tokenized(self, prompt: str) -> tuple[Tensor, Tensor]:
        """Token ids and attention mask of a prompt, int64 [max_length] each."""
        if prompt not in self._tokens:
            length = self.net.config["max_length"]
            batch = self.tokenizer(
                [prompt], padding="max_length", truncation=True, max_length=length, return_tensors="pt"
            )
            self._tokens[prompt] = batch.input_ids[0], batch.attention_mask[0]
        return self._tokens[prompt]


def image_reward(
    model: str = MODEL, sha256: str | None = None, tokenizer: str | None = None, *, device: Any = "cpu"
) -> ImageReward:
    """ImageReward, what people prefer, about -2.3 to 2; `model` is a file, folder, Hub id or name.

    The publisher has a pickle only: `sha256` is the digest of the file, as its page on the Hub shows it. A folder with
    config.json, as `save_network` makes it, is read from safetensors. `tokenizer`: a folder or Hub id, by default the
    folder's own or the published one. Raises DiffscaleError for weights that cannot be loaded.
    """
    config = saved_config(model)
    path = fetch(model, FILE if config is None else "model.safetensors")
    net = ImageRewardNet(PUBLISHED if config is None else config)
    load_into(net, translate(load_state(path, sha256)), path)
    pieces = pretrained(transformers.AutoTokenizer, tokenizer or (TOKENIZER if config is None else model), "tokenizer")
    return ImageReward(net.to(device).eval().requires_grad_(False), pieces)
