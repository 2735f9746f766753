"""Class-conditional networks in the latents of an autoencoder, with classifier-free guidance."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from diffscale.samplers.denoiser import DenoiserSampler, Prediction
from diffscale.samplers.noise_schedules import NoiseSchedule
from diffscale.types import ClassLabel


class Denoiser(Protocol):
    """A network of latents [B, *shape] and class ids.

    `schedule`, `prediction`: what it was trained on and predicts, see `DenoiserSampler`. `null`: number of the class
    that means none, None if it knows no such class. `guided`: how many channels guidance acts on, as its publishers
    have it.
    """

    shape: tuple[int, ...]
    prediction: Prediction
    classes: int
    null: int | None
    guided: int

    @property
    def network(self) -> torch.nn.Module: ...
    @property
    def schedule(self) -> NoiseSchedule: ...

    def __call__(self, x: Tensor, times: Tensor, ids: Tensor) -> Tensor:
        """Its output [B, *shape], as `prediction` says, at `times` [B] for latents of classes `ids` (int64 [B])."""


def class_sampler(
    denoiser: Denoiser,
    vae: Any,
    labels: Sequence[ClassLabel],
    steps: int,
    guidance_scale: float = 1.0,
    solver: str = "heun",
    eta: float | None = None,
    guided_channels: int | None = None,
    device: torch.device | None = None,
) -> DenoiserSampler:
    """A Sampler over a class-conditional network in the latents of `vae`, a diffusers AutoencoderKL.

    `labels`: the classes that rows are of, its `prompts`. `guided_channels`: None for those of the network's
    publishers. Latents are float32, or float64 if the network is, and stay on `device`, where the network runs, else
    where its weights lie. Everything else, and errors, as of `DenoiserSampler`.
    """
    first = next(denoiser.network.parameters())
    return DenoiserSampler(
        denoiser,
        denoiser.schedule,
        denoiser.prediction,
        denoiser.shape,
        steps,
        labels,
        conditions=torch.tensor([label.class_id for label in labels]),
        null_condition=denoiser.null,
        guidance_scale=guidance_scale,
        guided_channels=denoiser.guided if guided_channels is None else guided_channels,
        solver=solver,
        eta=eta,
        decode=lambda latents: _decode(vae, latents),
        dtype=torch.float64 if first.dtype == torch.float64 else torch.float32,
        device=first.device if device is None else device,
    )


def _decode(vae: Any, latents: Tensor) -> Tensor:
    x = latents / vae.config.scaling_factor + (getattr(vae.config, "shift_factor", None) or 0.0)
    images: Tensor = vae.decode(x.to(vae.dtype)).sample
    return images.float() / 2 + 0.5
