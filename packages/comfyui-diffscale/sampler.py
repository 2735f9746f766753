"""ComfyUI's own sampling as a Sampler of diffscale, whose only move is the whole trajectory."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NoReturn

import comfy.model_management
import comfy.sample
import torch
from torch import Tensor

import diffscale
from diffscale.engine import noise

StepSeen = Callable[[int, Tensor], None]
"""Told of the number of every step, from 0, and of its prediction of the clean latents [1, ...]."""


_RATIOS = ("downscale_ratio_spacial", "downscale_ratio_temporal")  # ComfyUI's own spelling


class ComfySampler:
    """A `diffscale.Sampler` over what the KSampler node does, for searches over noises.

    `model`, `positive`, `negative`, `vae`, `latent`: as nodes hand them on; `latent` is of one picture, and is noised
    as `denoise` says. `settings`: `steps`, `cfg`, `sampler_name`, `scheduler` and `denoise` of comfy.sample.sample.
    `key`: of the sample that is made to measure what one costs; it is made once, and is the search's own candidate
    where that asks for it.

    Noises are functions of their keys alone, as everywhere in diffscale, and rows are sampled one at a time with a seed
    from their keys, as samplers that draw noise on the way draw it for a whole batch. `steps` is the number of
    denoiser evaluations of one sample, counted where ComfyUI combines the predictions (some samplers take two a step),
    and `forwards` counts the rows through the network.

    Raises DiffscaleError for a latent of several pictures, or of several tensors.
    """

    def __init__(
        self,
        model: Any,
        positive: Any,
        negative: Any,
        vae: Any,
        latent: Mapping[str, Any],
        prompt: str,
        key: int,
        settings: Mapping[str, Any],
    ) -> None:
        samples = latent["samples"]
        if getattr(samples, "is_nested", False):
            raise diffscale.DiffscaleError(
                "This latent holds several tensors, such as of picture and sound, which are not searched yet."
            )
        if len(samples) != 1:
            raise diffscale.DiffscaleError(
                f"The latent holds {len(samples)} pictures: set its batch size to 1, as the search makes the "
                "candidates itself, and `keep` says how many come out."
            )
        self.prompts: Sequence[str] = [prompt]
        self.forwards, self.flops_per_forward = 0, 0.0
        self.step_seen: StepSeen = lambda step, x0: None
        self._evaluations = 0
        self._model = self._counted(model)
        # Newer versions also bring an empty latent to the size that the model's autoencoder has.
        taken = inspect.signature(comfy.sample.fix_empty_latent_channels).parameters
        ratios = {name: latent[name] for name in _RATIOS if name in taken and name in latent}
        self._latent = comfy.sample.fix_empty_latent_channels(self._model, samples, **ratios)
        self._mask, self._vae = latent.get("noise_mask"), vae
        self._conditions, self._settings = (positive, negative), settings
        keys = torch.tensor([key])
        self._measured = key, self._sample(self.prior(keys, torch.tensor([0]))), self.forwards
        self.steps, self.forwards = self._evaluations, 0
        self.levels: Sequence[float] = [1 - i / self.steps for i in range(self.steps + 1)]

    def prior(self, keys: Tensor, rows: Tensor) -> diffscale.State:
        """Standard normal noises [B, ...] of `keys` (int64 [B]), on the CPU."""
        return diffscale.State(noise.normal(keys, self._latent.shape[1:]), 0, keys, rows)

    def run(self, state: diffscale.State, to: int | None = None, record: float | None = None) -> diffscale.State:
        """From noise to the end; nothing else, see the class."""
        if record is not None or to not in (None, self.steps) or state.step not in (0, self.steps):
            self._refuse()
        if state.step == self.steps:
            return state
        finished = [self._sample(state[[row]]) for row in range(len(state))]
        return replace(state, x=torch.cat(finished), step=self.steps)

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] in [0, 1], or frames of videos [B, F, 3, H, W]."""
        return self._vae.decode(latents)[..., :3].movedim(-1, -3).float().clamp(0, 1).cpu()

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise diffscale.DiffscaleError(
            "In ComfyUI trajectories are run whole, but this needs the middle of them: use a search over noises and a "
            "verifier of finished pictures."
        )

    predict = predicted = step = renoise = solve = gradient = _refuse

    def _sample(self, state: diffscale.State) -> Tensor:
        """Clean latents [1, ...] of the noise of one row; ComfyUI's exception if its user stopped the run."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        key = int(state.key)
        if (measured := getattr(self, "_measured", None)) is not None and measured[0] == key:
            self.forwards += measured[2]
            return measured[1]
        positive, negative = self._conditions
        return comfy.sample.sample(
            self._model,
            state.x.to(self._latent.dtype),
            positive=positive,
            negative=negative,
            latent_image=self._latent,
            noise_mask=self._mask,
            callback=lambda step, x0, x, total: self.step_seen(step, x0),
            disable_pbar=True,
            seed=key % 2**64,
            **self._settings,
        ).cpu()

    def _counted(self, model: Any) -> Any:
        """A copy of the model patcher that counts evaluations and rows, with all that the user's does."""
        copy = model.clone()
        own = copy.model_options.get("model_function_wrapper")

        def count_rows(apply_model: Callable[..., Tensor], given: Mapping[str, Any]) -> Tensor:
            self.forwards += len(given["input"])
            if own is not None:
                return own(apply_model, given)
            return apply_model(given["input"], given["timestep"], **given["c"])

        def count_evaluation(given: Mapping[str, Any]) -> Tensor:
            self._evaluations += 1
            return given["denoised"]

        copy.set_model_unet_function_wrapper(count_rows)
        copy.set_model_sampler_post_cfg_function(count_evaluation)
        return copy
