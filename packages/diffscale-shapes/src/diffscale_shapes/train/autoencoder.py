"""The autoencoder of shapes-flux: 64x64 pictures to 8x8 latents of 8 channels and back, factor 8."""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from random import Random

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from diffscale._util.files import replacing
from diffscale_shapes.render import render_batch
from diffscale_shapes.scenes import CATEGORIES, Scene, draw_crowded_scene, draw_description, draw_scene
from diffscale_shapes.train.loop import Step, autocast, fit
from diffscale_shapes.train.shipped import untrained

STEPS = 1900
POLISH_STEPS = 2500
BATCH = 16
NOISE = 0.1  # the posterior's fixed standard deviation: neighbouring latents must mean the same picture
NOISE_RAMP = 1000  # steps; noise from the start taught the decoder to ignore the latents (measured: 14 dB for ever)
KL_WEIGHT = 1e-4  # per latent value


def train(folder: Path, steps: int = STEPS) -> AutoencoderKL:
    """Train from nothing, or go on from the checkpoint in `folder`; returns the averaged network."""
    torch.manual_seed(0)
    net = untrained(AutoencoderKL, "shapes-flux/vae")
    with torch.no_grad():
        net.encoder.conv_out.weight[8:] = 0  # the log-variances are constant, see NOISE
        net.encoder.conv_out.bias[8:] = 2 * math.log(NOISE)

    def loss(step: Step) -> Tensor:
        x = draw_batch(step.rng)
        with autocast():
            noise = torch.randn(BATCH, 8, 8, 8, generator=step.generator)
            # Not compiled: torch 2.13's inductor gives wrong gradients for these bf16 convolutions on the CPU.
            mean, _ = net.encoder(x).chunk(2, dim=1)
            y = net.decoder(mean + noise * NOISE * min(1.0, step.number / NOISE_RAMP))
        error = y.float() - x
        return error.square().mean() + 0.1 * error.abs().mean() + KL_WEIGHT * 0.5 * mean.float().square().mean()

    fitted = partial(fit, lr=1e-3, warmup=100, evaluate=lambda mean: _figures(mean.encoder, mean.decoder))
    mean = fitted(net, loss, "autoencoder", folder, steps)
    normalise(mean)
    return mean


def polish(net: AutoencoderKL, folder: Path, steps: int = POLISH_STEPS) -> None:
    """Train the decoder on, in place, or go on from the checkpoint in `folder`; latents keep their meaning.

    Absolute error weighs as much as squared error here: it is what makes plain areas plain.
    """
    net.train().encoder.requires_grad_(False)
    net.decoder.requires_grad_(True)

    def loss(step: Step) -> Tensor:
        x = draw_batch(step.rng)
        noise = torch.randn(BATCH, 8, 8, 8, generator=step.generator)
        with autocast():
            with torch.no_grad():
                mean, _ = net.encoder(x).chunk(2, dim=1)
            error = net.decoder(mean + noise * NOISE).float() - x
        return error.square().mean() + error.abs().mean()

    evaluate = partial(_figures, net.encoder)
    net.decoder = fit(net.decoder, loss, "autoencoder polish", folder, steps, lr=1e-3, warmup=100, evaluate=evaluate)


def draw_batch(rng: Random) -> Tensor:
    """Pictures [16, 3, 64, 64] in [-1, 1], most of them crowded: one teaches the decoder more than a scene of two."""
    crowded = (rng.random() < 0.7 for _ in range(BATCH))
    return render_batch([draw_crowded_scene(rng) if c else _draw_scene(rng.choice(CATEGORIES), rng) for c in crowded])


def _draw_scene(category: str, rng: Random) -> Scene:
    return draw_scene(draw_description(rng, category), rng)


def _figures(encoder: nn.Module, decoder: nn.Module) -> dict[str, float]:
    rng = Random("autoencoder evaluation")
    x = render_batch([_draw_scene(category, rng) for category in CATEGORIES for _ in range(16)])
    z, _ = encoder(x).chunk(2, dim=1)
    y = decoder(z)
    mse = ((y.clamp(-1, 1) - x) / 2).square().mean()
    return {"psnr": float(-10 * mse.log10()), "latent_mean": float(z.mean()), "latent_std": float(z.std())}


@torch.no_grad()
def normalise(net: AutoencoderKL) -> None:
    """Set the scaling and shift factors that give the latents of Shapes pictures mean 0 and variance 1."""
    rng = Random("autoencoder latents")
    scenes = [_draw_scene(category, rng) for category in CATEGORIES for _ in range(64)]
    z = torch.cat([net.encode(chunk).latent_dist.mode() for chunk in render_batch(scenes).split(64)])
    net.register_to_config(scaling_factor=float(1 / z.std()), shift_factor=float(z.mean()))


@torch.no_grad()
def encode_once(vae: AutoencoderKL, file: Path, scenes: Sequence[Scene]) -> Tensor:
    """Latents [scenes, 8, 8, 8], of mean 0 and variance 1, made once and kept in `file`."""
    if not file.exists():
        parts = (render_batch(scenes[i : i + 64]) for i in range(0, len(scenes), 64))
        with autocast():
            chunks = [vae.encode(part).latent_dist.mode().float() for part in parts]
        latents = (torch.cat(chunks) - vae.config.shift_factor) * vae.config.scaling_factor
        with replacing(file) as fresh:
            save_file({"latents": latents.contiguous()}, fresh)
    return load_file(file)["latents"]
