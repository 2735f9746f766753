"""shapes-sdxl and shapes-pixart: siblings of shapes-flux on its autoencoder, sampled with DDIM and its kin.

Trained by epsilon-prediction: the simple loss of DDPM (Ho et al. 2020, equation 14) on the schedule that Stable
Diffusion was trained with. shapes-sdxl is a small UNet with SDXL's pooled text and size conditioning (Podell et al.
2023, section 2.2); its two CLIP text encoders are too small to be of use untrained, so they learn with the UNet.
shapes-pixart is a small PixArt-Sigma transformer on the T5 text encoder of shapes-flux, of about a quarter of its
parameters: the small model that search is to lift above the large one (Ma et al. 2025, section 5.4).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Final

import torch
from diffusers import DDIMScheduler, PixArtTransformer2DModel, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPTextModelWithProjection, T5EncoderModel

from diffscale_shapes import MODELS
from diffscale_shapes.scenes import CANVAS
from diffscale_shapes.train.corpus import BATCH, Corpus, encode_unshifted
from diffscale_shapes.train.loop import Net, Step, autocast, fit
from diffscale_shapes.train.shipped import flux_vae, load_shipped, save_parts, untrained
from diffscale_shapes.train.text import clip_tokenizer, t5_tokenizer, tokenize

TIME_IDS: Final = (CANVAS, CANVAS, 0, 0, CANVAS, CANVAS)  # original size, crop, target size, as the pipeline says them


def noise_schedule() -> DDIMScheduler:
    """The schedule of shapes-sdxl and shapes-pixart."""
    return DDIMScheduler.from_pretrained(MODELS / "shapes-sdxl" / "scheduler")  # type: ignore[no-any-return]


def fit_noise(
    net: Net,
    predict: Callable[[Tensor, Tensor, list[str]], Tensor],  # noise in x [B, ...] at timesteps [B], for captions
    corpus: Corpus,
    seed: str,
    folder: Path,
    steps: int,
) -> Net:
    """Train `net` through `predict`, or go on from the checkpoint in `folder`; returns the averaged copy."""
    schedule = noise_schedule()

    def loss(step: Step) -> Tensor:
        x0, captions = corpus.draw(step.rng)
        t = torch.randint(len(schedule.alphas_cumprod), (BATCH,), generator=step.generator)
        eps = torch.randn(x0.shape, generator=step.generator)
        with autocast():
            guess = predict(schedule.add_noise(x0, eps, t), t, captions)  # type: ignore[arg-type]
        return F.mse_loss(guess.float(), eps)

    return fit(net, loss, seed, folder, steps, lr=1e-3, muon=True)


class SdxlToNoise(nn.Module):
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
        more = {"text_embeds": second.text_embeds, "time_ids": sizes}
        return self.fast_unet(x, t, states, added_cond_kwargs=more, return_dict=False)[0]


def train_sdxl(checkpoints: Path, folder: Path, steps: int) -> None:
    """A small SDXL, from nothing."""
    vae = flux_vae()
    corpus = encode_unshifted(vae, checkpoints / "flux")
    torch.manual_seed(0)
    net = SdxlToNoise()
    net = fit_noise(net, net, corpus, "shapes-sdxl step", checkpoints / "sdxl", steps)
    full: dict[str, nn.Module] = {"text_encoder": net.text_encoder, "text_encoder_2": net.text_encoder_2}
    save_parts(folder, {"vae": vae, "unet": net.unet}, full)


class PixartToNoise(nn.Module):
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
            states = self.text_encoder(**batch)[0]
        sizes = {"resolution": None, "aspect_ratio": None}
        mask = batch.attention_mask
        return self.fast_transformer(x, states, t, sizes, encoder_attention_mask=mask, return_dict=False)[0]


def train_pixart(checkpoints: Path, folder: Path, steps: int) -> None:
    """A small PixArt-Sigma, its transformer from nothing."""
    base = load_shipped("shapes-flux")
    corpus = encode_unshifted(base.vae, checkpoints / "flux")
    torch.manual_seed(0)
    net = PixartToNoise(base.text_encoder_2)
    transformer = fit_noise(net.transformer, net, corpus, "shapes-pixart step", checkpoints / "pixart", steps)
    save_parts(folder, {"vae": base.vae, "transformer": transformer}, {"text_encoder": net.text_encoder})
