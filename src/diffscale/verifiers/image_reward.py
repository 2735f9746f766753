"""ImageReward (Xu et al. 2023, arXiv 2304.05977): BLIP reads picture and prompt together, a head rates the pair."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import Parameter
from transformers import AutoTokenizer

from diffscale.models.files import fetch, load_into, load_state, pretrained, saved_config
from diffscale.types import Verifier
from diffscale.verifiers.defaults import default_model
from diffscale.verifiers.image_reward_net import PUBLISHED, ImageRewardNet, translate
from diffscale.verifiers.preprocess import Preprocessing

MODEL: Final = "THUDM/ImageReward"
FILE: Final = "ImageReward.pt"
TOKENIZER: Final = "google-bert/bert-base-uncased"
"""ImageReward adds [DEC] and [ENC] to this vocabulary, and its texts use neither."""


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
        rating = self.net(*self.prepared(images, prompts))
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
    model: str | None = None,
    sha256: str | None = None,
    tokenizer: str | None = None,
    *,
    device: Any = "cpu",
    image_model: str = "",
) -> Verifier:
    """ImageReward, what people prefer, about -2.3 to 2; `model` is a file, folder, Hub id or name.

    The publisher has a pickle only: `sha256` is the digest of the file, as its page on the Hub shows it. A folder with
    config.json, as `save_network` makes it, is read from safetensors. `tokenizer`: a folder or Hub id, by default the
    folder's own or the published one. Raises DiffscaleError for weights that cannot be loaded.
    """
    model = model or default_model(image_model, "image_reward", MODEL)
    config = saved_config(model)
    path = fetch(model, FILE if config is None else "model.safetensors")
    net = ImageRewardNet(PUBLISHED if config is None else config)
    load_into(net, translate(load_state(path, sha256)), path)
    pieces = pretrained(AutoTokenizer, tokenizer or (TOKENIZER if config is None else model), "tokenizer")
    return ImageReward(net.to(device).eval().requires_grad_(False), pieces)
