"""shapes-sdxl: a small SDXL UNet with two CLIP text encoders of its own, on the autoencoder of shapes-flux.

Epsilon-prediction with SDXL's pooled text and size conditioning (Podell et al. 2023, section 2.2); the text encoders
are too small to be of use untrained, so they learn with the UNet.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from diffscale.shapes.scenes import CANVAS
from diffscale.shapes.train.corpus import encode_unshifted, fit_noise
from diffscale.shapes.train.shipped import flux_vae, save_parts, untrained
from diffscale.shapes.train.text import clip_tokenizer, tokenize

STEPS: Final = 2_500
TIME_IDS: Final = (CANVAS, CANVAS, 0, 0, CANVAS, CANVAS)  # original size, crop, target size, as the pipeline says them


class TextToNoise(nn.Module):
    """The trained part of the pipeline: both text encoders and the UNet."""

    def __init__(self) -> None:
        super().__init__()
        self.text_encoder = untrained(CLIPTextModel, "shapes-sdxl/text_encoder")
        self.text_encoder_2 = untrained(CLIPTextModelWithProjection, "shapes-sdxl/text_encoder_2")
        self.unet = untrained(UNet2DConditionModel, "shapes-sdxl/unet")
        self.fast_unet = torch.compile(self.unet)

    def forward(self, x: Tensor, t: Tensor, captions: list[str]) -> Tensor:
        """Noise in latents `x` [B, 8, 8, 8] at timesteps `t` [B]."""
        ids = tokenize(clip_tokenizer(), captions).input_ids
        first = self.text_encoder(ids, output_hidden_states=True)
        second = self.text_encoder_2(ids, output_hidden_states=True)
        # The pipeline reads the last layer but one.
        states = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], -1)
        sizes = torch.tensor([TIME_IDS], dtype=x.dtype).expand(len(x), -1)
        return self.fast_unet(
            x,
            t,
            encoder_hidden_states=states,
            added_cond_kwargs={"text_embeds": second.text_embeds, "time_ids": sizes},
            return_dict=False,
        )[0]


def train(checkpoints: Path, folder: Path, steps: int | None = None) -> None:
    """A small SDXL, from nothing."""
    vae = flux_vae()
    corpus = encode_unshifted(vae, checkpoints / "flux")
    torch.manual_seed(0)
    net = TextToNoise()
    net = fit_noise(net, net, corpus, "shapes-sdxl step", checkpoints / "sdxl", steps or STEPS)
    full: dict[str, nn.Module] = {"text_encoder": net.text_encoder, "text_encoder_2": net.text_encoder_2}
    save_parts(folder, {"vae": vae, "unet": net.unet}, full)
