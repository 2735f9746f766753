"""shapes-pixart: a small PixArt-Sigma transformer on the autoencoder and the T5 text encoder of shapes-flux.

About a quarter of shapes-flux's parameters, epsilon-prediction, DDIM with classifier-free guidance: the small model
that search is to lift above the large one (Ma et al. 2025, section 5.4).
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import torch
from diffusers import PixArtTransformer2DModel
from torch import Tensor, nn
from transformers import T5EncoderModel

from diffscale.shapes.train.corpus import encode_unshifted, fit_noise
from diffscale.shapes.train.shipped import load_shipped, save_parts, untrained
from diffscale.shapes.train.text import t5_tokenizer, tokenize

STEPS: Final = 6_000


class TextToNoise(nn.Module):
    """The transformer and, frozen, the text encoder that it reads."""

    def __init__(self, text_encoder: T5EncoderModel) -> None:
        super().__init__()
        self.text_encoder = text_encoder.requires_grad_(False)
        self.transformer = untrained(PixArtTransformer2DModel, "shapes-pixart/transformer")
        self.fast_transformer = torch.compile(self.transformer)

    def forward(self, x: Tensor, t: Tensor, captions: list[str]) -> Tensor:
        """Noise in latents `x` [B, 8, 8, 8] at timesteps `t` [B]."""
        batch = tokenize(t5_tokenizer(), captions)
        with torch.no_grad():
            states = self.text_encoder(batch.input_ids, attention_mask=batch.attention_mask)[0]
        return self.fast_transformer(
            x,
            encoder_hidden_states=states,
            encoder_attention_mask=batch.attention_mask,
            timestep=t,
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            return_dict=False,
        )[0]


def train(checkpoints: Path, folder: Path, steps: int | None = None) -> None:
    """A small PixArt-Sigma, its transformer from nothing."""
    base = load_shipped("shapes-flux")
    corpus = encode_unshifted(base.vae, checkpoints / "flux")
    torch.manual_seed(0)
    net = TextToNoise(base.text_encoder_2)
    transformer = fit_noise(net.transformer, net, corpus, "shapes-pixart step", checkpoints / "pixart", steps or STEPS)
    save_parts(folder, {"vae": base.vae, "transformer": transformer}, {"text_encoder": net.text_encoder})
