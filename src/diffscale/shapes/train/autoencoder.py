"""The autoencoder of shapes-flux: 64x64 pictures to 8x8 latents of 8 channels and back, factor 8."""

from __future__ import annotations

import math
from pathlib import Path
from random import Random

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from diffscale.shapes.render import render
from diffscale.shapes.scenes import (
    CATEGORIES,
    COLOURS,
    SHAPES,
    SIZES,
    TEXTURES,
    Obj,
    Scene,
    draw_description,
    draw_scene,
    pack,
)
from diffscale.shapes.train.loop import fit

STEPS = 1900
POLISH_STEPS = 2500
BATCH = 16
NOISE = 0.1  # the posterior's fixed standard deviation: neighbouring latents must mean the same picture
NOISE_RAMP = 1000  # steps; noise from the start taught the decoder to ignore the latents (measured: 14 dB for ever)
KL_WEIGHT = 1e-4  # per latent value


def build() -> AutoencoderKL:
    """The network, untrained."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 96),
        layers_per_block=1,
        latent_channels=8,
        norm_num_groups=8,
        sample_size=64,
        scaling_factor=1.0,
        shift_factor=0.0,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    )


def render_batch(scenes: list[Scene]) -> Tensor:
    """Scenes drawn as the autoencoder takes them: [B, 3, 64, 64] in [-1, 1]."""
    return torch.from_numpy(np.stack([render(scene) for scene in scenes])).permute(0, 3, 1, 2) * 2 - 1


def draw_crowded_scene(rng: Random) -> Scene:
    """As many unlike objects as fit: one picture teaches the decoder more than a scene of two would."""
    wanted = [
        Obj(rng.choice(SHAPES), rng.choice(COLOURS), rng.choice(TEXTURES), rng.choice(SIZES), 0, 0) for _ in range(9)
    ]
    return pack(wanted, rng)


def train(folder: Path, steps: int = STEPS) -> AutoencoderKL:
    """Train from nothing, or go on from the checkpoint in `folder`; returns the averaged network."""
    torch.manual_seed(0)
    net = build()
    with torch.no_grad():
        net.encoder.conv_out.weight[8:] = 0  # the log-variances are constant, see NOISE
        net.encoder.conv_out.bias[8:] = 2 * math.log(NOISE)

    def loss(step: int) -> Tensor:
        x = batch(Random(f"autoencoder {step}"))
        with torch.autocast("cpu", torch.bfloat16):
            noise = torch.randn(BATCH, 8, 8, 8, generator=torch.Generator().manual_seed(step))
            # Not compiled: torch 2.13's inductor gives wrong gradients for these bf16 convolutions on the CPU.
            mean, _ = net.encoder(x).chunk(2, dim=1)
            y = net.decoder(mean + noise * NOISE * min(1.0, step / NOISE_RAMP))
        error = y.float() - x
        return error.square().mean() + 0.1 * error.abs().mean() + KL_WEIGHT * 0.5 * mean.float().square().mean()

    def evaluate(mean: nn.Module, step: int) -> dict[str, float]:
        return _figures(mean.encoder, mean.decoder)  # type: ignore[arg-type]

    mean = fit(net, loss, folder=folder, steps=steps, lr=1e-3, warmup=100, evaluate=evaluate)
    normalise(mean)  # type: ignore[arg-type]
    return mean  # type: ignore[return-value]


def polish(net: AutoencoderKL, folder: Path, steps: int = POLISH_STEPS) -> AutoencoderKL:
    """Train the decoder on, in place, or go on from the checkpoint in `folder`; latents keep their meaning.

    Absolute error weighs as much as squared error here: it is what makes plain areas plain.
    """
    net.encoder.requires_grad_(False)
    net.decoder.requires_grad_(True)

    def loss(step: int) -> Tensor:
        x = batch(Random(f"autoencoder polish {step}"))
        noise = torch.randn(BATCH, 8, 8, 8, generator=torch.Generator().manual_seed(step))
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                mean, _ = net.encoder(x).chunk(2, dim=1)
            error = net.decoder(mean + noise * NOISE).float() - x
        return error.square().mean() + error.abs().mean()

    def evaluate(decoder: nn.Module, step: int) -> dict[str, float]:
        return _figures(net.encoder, decoder)

    net.decoder = fit(net.decoder, loss, folder=folder, steps=steps, lr=1e-3, warmup=100, evaluate=evaluate)
    return net


def batch(rng: Random) -> Tensor:
    """Pictures [16, 3, 64, 64] in [-1, 1], most of them crowded."""
    return render_batch(
        [
            draw_crowded_scene(rng)
            if rng.random() < 0.7
            else draw_scene(draw_description(rng, rng.choice(CATEGORIES)), rng)
            for _ in range(BATCH)
        ]
    )


@torch.no_grad()
def _figures(encoder: nn.Module, decoder: nn.Module) -> dict[str, float]:
    rng = Random("autoencoder evaluation")
    x = render_batch([draw_scene(draw_description(rng, c), rng) for c in CATEGORIES for _ in range(16)])
    z, _ = encoder(x).chunk(2, dim=1)
    y = decoder(z)
    mse = ((y.clamp(-1, 1) - x) / 2).square().mean()
    return {"psnr": float(-10 * mse.log10()), "latent_mean": float(z.mean()), "latent_std": float(z.std())}


@torch.no_grad()
def normalise(net: AutoencoderKL) -> None:
    """Set the scaling and shift factors that give the latents of Shapes pictures mean 0 and variance 1."""
    rng = Random("autoencoder latents")
    scenes = [draw_scene(draw_description(rng, c), rng) for c in CATEGORIES for _ in range(64)]
    z = torch.cat([net.encode(chunk).latent_dist.mode() for chunk in render_batch(scenes).split(64)])
    net.register_to_config(scaling_factor=float(1 / z.std()), shift_factor=float(z.mean()))
