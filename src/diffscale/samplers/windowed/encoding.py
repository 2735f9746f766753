"""Latents of pictures, in the scale and layout of any pipeline: what its own decoding does, inverted."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.autoencoders.vae import DecoderOutput
from torch import Tensor

from diffscale._util.errors import DiffscaleError
from diffscale.samplers.calls import overridden
from diffscale.samplers.windowed.pipeline import WindowedPipeline
from diffscale.samplers.windowed.scheduler import StepWindow


class Encoder:
    """Encodes pictures for `pipeline`.

    Between its latents and its autoencoder a pipeline scales, shifts and unpacks; it may do so with one scale (Stable
    Diffusion), a shift too (Flux, Stable Diffusion 3), means and deviations of every channel (Qwen-Image), in patches
    (Flux). Each entry of what the autoencoder gets is one entry of the latents, scaled and shifted. Which one is found
    by decoding a few latents of zeros and ones with the autoencoder left out.

    `like`: an empty tensor [0, ...] shaped, typed and placed as latents are. Raises DiffscaleError for pipelines
    without an autoencoder, or that do more than that.
    """

    def __init__(self, pipeline: WindowedPipeline, like: Tensor) -> None:
        self._pipeline, self._like = pipeline, like
        self._vae: Any = pipeline.components.get("vae")
        if self._vae is None or not hasattr(self._vae, "encode"):
            raise DiffscaleError("This pipeline has no autoencoder that encodes pictures: give latents.")
        size = like.shape[1:].numel()
        self._shift = self._decoder_input(torch.zeros(size))
        self._scale = self._decoder_input(torch.ones(size)) - self._shift
        if self._scale.numel() != size or not self._scale.abs().min() > 0:
            raise DiffscaleError("This pipeline decodes its latents by more than scale, shift and order: use another.")
        # The place of each entry among the latents, bit by bit: signs survive any precision.
        place = torch.zeros(size, dtype=torch.int64)
        for bit in range((size - 1).bit_length()):
            ones = (torch.arange(size) >> bit & 1).float()
            place += ((self._decoder_input(ones) - self._shift) / self._scale > 0.5).flatten().cpu().long() << bit
        if not torch.equal(place.sort().values, torch.arange(size)):
            raise DiffscaleError("This pipeline decodes its latents by more than scale, shift and order: use another.")
        self._order = place.argsort()

    @torch.no_grad()
    def __call__(self, pictures: Tensor) -> Tensor:
        """Clean latents float32 [B, ...] of `pictures` [B, 3, H, W] in [0, 1], of the size that the pipeline makes.

        The mode of the autoencoder's distribution, so that latents can be kept; the pictures of videos are one frame.
        """
        given = pictures.to(self._like.device, next(self._vae.parameters()).dtype) * 2 - 1
        if self._shift.ndim == 5:
            given = given.unsqueeze(2)
        coded = self._vae.encode(given)
        code = (coded.latent_dist.mode() if hasattr(coded, "latent_dist") else coded.latent).float()
        if code.shape[1:] != self._shift.shape[1:]:
            raise DiffscaleError(
                f"Pictures of {tuple(pictures.shape[2:])} pixels are encoded to {tuple(code.shape[1:])}, but the "
                f"pipeline makes latents of {tuple(self._shift.shape[1:])}: give height and width as the pictures' own."
            )
        flat = ((code - self._shift) / self._scale).flatten(1)[:, self._order.to(code.device)]
        return flat.view(len(flat), *self._like.shape[1:])

    def _decoder_input(self, flat: Tensor) -> Tensor:
        """What the autoencoder is given to decode of latents with entries `flat`: float32 [1, ...]."""
        given: list[Tensor] = []

        def decode(latents: Tensor, *args: Any, **kwargs: Any) -> Any:
            given.append(latents)
            return DecoderOutput(sample=latents)

        end = self._pipeline.scheduler.count
        with overridden(self._vae, decode=decode):
            self._pipeline.run(flat.view(1, *self._like.shape[1:]).to(self._like), [0], StepWindow(end, end), "pt")
        if len(given) != 1:
            raise DiffscaleError("This pipeline does not decode its latents in one call of its autoencoder.")
        return given[0].float()
