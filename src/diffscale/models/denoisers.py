"""Class-conditional networks as denoisers: their schedules, and their outputs in one convention."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from diffscale._util.errors import DiffscaleError
from diffscale.models.sit import SiT
from diffscale.samplers.formulas import Marginal
from diffscale.samplers.levels import level_of, timestep_of
from diffscale.samplers.schedules import Schedule, even


class SiTDenoiser:
    """SiT on the linear flow. Its time runs from noise to clean, so v = eps - x0 is the negative of its output.

    Guidance acts on the first 3 of 4 channels, as in the authors' `forward_with_cfg` (github.com/willisma/SiT,
    models.py); of latents with more channels, which they have none of, on all.
    """

    def __init__(self, network: SiT) -> None:
        self.network = network
        config = network.config
        self.shape = config.in_channels, config.input_size, config.input_size
        self.guided = 3 if config.in_channels == 4 else config.in_channels
        self.classes = config.num_classes
        self.null = config.num_classes if config.class_dropout_prob > 0 else None

    def schedule(self, steps: int) -> Schedule:
        return Schedule("flow", "flow_prediction", even(steps))

    def __call__(self, x: Tensor, at: Marginal, ids: Tensor) -> Tensor:
        time = torch.full((len(x),), at.alpha, dtype=x.dtype, device=x.device)
        return -self.network(x.to(_dtype(self.network)), time, ids).to(x.dtype)


class DiTDenoiser:
    """diffusers' DiTTransformer2DModel, on the variance preserving schedule of a diffusers `scheduler`.

    The levels are those of the scheduler's own timesteps, then 0. Guidance acts on all channels, as in diffusers'
    DiTPipeline. Raises DiffscaleError for a scheduler without a table of alphas.
    """

    def __init__(self, network: Any, scheduler: Any) -> None:
        self.network = network
        config = network.config
        self.shape = config.in_channels, config.sample_size, config.sample_size
        self.guided = config.in_channels
        self.classes = self.null = config.num_embeds_ada_norm
        if getattr(scheduler, "alphas_cumprod", None) is None:
            raise DiffscaleError(
                f"DiT needs a scheduler with a table of alphas, such as DDIMScheduler, not {type(scheduler).__name__}."
            )
        self._scheduler = scheduler

    def schedule(self, steps: int) -> Schedule:
        scheduler = copy.deepcopy(self._scheduler)
        scheduler.set_timesteps(steps)
        # Some schedulers evaluate a timestep twice.
        times = dict.fromkeys(scheduler.timesteps.tolist())
        levels = [level_of(self._scheduler.alphas_cumprod, time) for time in times]
        return Schedule("vp", str(self._scheduler.config.prediction_type), (*levels, 0.0))

    def __call__(self, x: Tensor, at: Marginal, ids: Tensor) -> Tensor:
        time = torch.full((len(x),), timestep_of(self._scheduler.alphas_cumprod, at), device=x.device)
        out = self.network(x.to(_dtype(self.network)), timestep=time, class_labels=ids).sample
        return out[:, : self.shape[0]].to(x.dtype)


def _dtype(network: torch.nn.Module) -> torch.dtype:
    return next(p.dtype for p in network.parameters() if p.is_floating_point())
