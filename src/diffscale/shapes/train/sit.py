"""shapes-sit-s, -b and -l: class-conditional SiTs of three sizes on the autoencoder of shapes-flux.

The linear flow of SiT (Ma et al. 2024, arXiv 2401.08740, section 3): x_t = t x_0 + (1 - t) eps, target x_0 - eps, t
uniform from noise (0) to clean (1). All sizes see the same pictures, noises and times, as the published ones do.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Final

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from diffscale.models.sit import SiT, SiTConfig
from diffscale.shapes.classes import CLASSES, draw_class_scene
from diffscale.shapes.train.autoencoder import render_batch
from diffscale.shapes.train.loop import fit

STEPS: Final = 2_000
BATCH: Final = 128
SCENES: Final = 24_000  # 500 a class, encoded once

_SMALL: Final = SiTConfig(input_size=8, in_channels=8, num_classes=len(CLASSES), hidden_size=64, depth=4, num_heads=4)
SIZES: Final = {
    "s": _SMALL,
    "b": replace(_SMALL, hidden_size=96, depth=6),
    "l": replace(_SMALL, hidden_size=160, depth=8, num_heads=8),
}
"""0.3, 1.0 and 3.7 million parameters: each step multiplies them by about 4, as from the published S to B to L."""


def train(size: str, latents: Tensor, folder: Path, steps: int = STEPS) -> SiT:
    """Train on latents [scenes, 8, 8, 8] of `encode_classes`, or go on from the checkpoint in `folder`."""
    torch.manual_seed(0)
    config = SIZES[size]
    net = SiT(config)
    fast = torch.compile(net)

    def loss(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(step)
        rows = torch.randint(len(latents), (BATCH,), generator=generator)
        x0, labels = latents[rows], rows % len(CLASSES)
        t = torch.rand(BATCH, generator=generator)
        eps = torch.randn(x0.shape, generator=generator)
        dropped = torch.rand(BATCH, generator=generator) < config.class_dropout_prob
        at = t.view(-1, 1, 1, 1)
        with torch.autocast("cpu", torch.bfloat16):
            guess = fast(at * x0 + (1 - at) * eps, t, labels.masked_fill(dropped, len(CLASSES)))
        return F.mse_loss(guess.float(), x0 - eps)

    return fit(net, loss, folder=folder, steps=steps, lr=1e-3, muon=True)  # type: ignore[return-value]


@torch.no_grad()
def encode_classes(vae: AutoencoderKL, folder: Path, count: int = SCENES) -> Tensor:
    """Latents [count, 8, 8, 8], kept in `folder`; row i shows class i modulo 48."""
    saved = folder / f"latents-{count}.safetensors"
    if not saved.exists():
        chunks = []
        for start in range(0, count, 64):
            numbers = range(start, min(start + 64, count))
            drawn = [draw_class_scene(i % len(CLASSES), Random(f"shapes-sit scene {i}")) for i in numbers]
            with torch.autocast("cpu", torch.bfloat16):
                z = vae.encode(render_batch(drawn)).latent_dist.mode().float()
            chunks.append((z - vae.config.shift_factor) * vae.config.scaling_factor)
        folder.mkdir(parents=True, exist_ok=True)
        save_file({"latents": torch.cat(chunks).contiguous()}, saved)
    return load_file(saved)["latents"]
