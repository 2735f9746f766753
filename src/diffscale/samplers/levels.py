"""Noise levels: schedules of our own; and what the latents of a diffusers scheduler mean, on its grid and off it."""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from torch import Tensor

from diffscale._util.errors import DiffscaleError
from diffscale.samplers.formulas import Marginal, marginal, x0_and_eps
from diffscale.samplers.windowed.loop import NotWindowed


@dataclass(frozen=True)
class Schedule:
    """`process`: of `formulas.PROCESSES`. `prediction`: see `formulas.x0_and_eps`. `levels`: falling, the last 0."""

    process: str
    prediction: str
    levels: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.levels) < 2 or self.levels[-1] or any(a <= b for a, b in pairwise(self.levels)):
            raise DiffscaleError(f"Noise levels must fall to 0 in one step or more, but these do not: {self.levels}.")

    def marginal(self, level: float) -> Marginal:
        """Alpha and sigma at any level."""
        return marginal(self.process, level)


def even_levels(steps: int) -> tuple[float, ...]:
    """Levels from 1 to 0 in equal steps: the uniform times of a linear flow."""
    return (*(1 - i / steps for i in range(steps)), 0.0)


def karras_levels(steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> tuple[float, ...]:
    """Levels of the EDM schedule, for `ve`: sigmas whose 1/rho-th powers fall evenly, then 0.

    Karras et al. 2022 (arXiv 2206.00364), equation 5.
    """
    first, last = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    share = [i / max(steps - 1, 1) for i in range(steps)]
    sigmas = [(first + part * (last - first)) ** rho for part in share]
    return (*(sigma / (1 + sigma) for sigma in sigmas), 0.0)


def grid_marginal(scheduler: Any, step: int) -> Marginal:
    """Alpha and sigma of the latents that enter grid step `step`; (1, 0) after the last one."""
    at = scheduler.first + step
    if at == len(scheduler.timesteps):
        return Marginal(1.0, 0.0)
    table: Any = getattr(scheduler, "alphas_cumprod", None)
    sigmas: Any = getattr(scheduler, "sigmas", None)
    if prediction_type(scheduler) in ("edm", "trigflow") or (table is None and sigmas is None):
        raise NotWindowed(f"{type(scheduler).__name__} has no known noise levels")
    if sigmas is None:
        kept = float(table[int(scheduler.timesteps[at])])
        return Marginal(math.sqrt(kept), math.sqrt(1 - kept))
    if hasattr(scheduler, "_sigma_to_alpha_sigma_t"):
        alpha, sigma = scheduler._sigma_to_alpha_sigma_t(sigmas[at])
        return Marginal(float(alpha), float(sigma))
    sigma = float(sigmas[at])
    return Marginal(1 - sigma if prediction_type(scheduler) == "flow_prediction" else 1.0, sigma)


def process_of(scheduler: Any) -> str:
    """Which of `formulas.PROCESSES` the scheduler's levels have; raises DiffscaleError if none."""
    found = [grid_marginal(scheduler, i) for i in range(scheduler.count)]
    norms = {
        "flow": [at.alpha + at.sigma for at in found],
        "vp": [math.hypot(*at) for at in found],
        "ve": [at.alpha for at in found],
    }
    for name, values in norms.items():
        if all(abs(value - 1) < 1e-4 for value in values):
            return name
    raise DiffscaleError(
        f"The noise levels of {type(scheduler).__name__} are neither those of a linear flow nor variance preserving "
        "nor variance exploding; use a search over whole trajectories, or another scheduler."
    )


def off_grid_marginal(scheduler: Any, level: float) -> Marginal:
    """Alpha and sigma at any level in [0, 1)."""
    return marginal(process_of(scheduler), level)


def off_grid_timestep(scheduler: Any, level: float) -> float:
    """The timestep that the network is told at a level, not rounded."""
    at = off_grid_marginal(scheduler, level)
    table: Any = getattr(scheduler, "alphas_cumprod", None)
    # Solvers that take flows too have a table, which is not the flow's.
    if table is not None and prediction_type(scheduler) != "flow_prediction":
        return timestep_of(table, at)
    # A flow's network is told what the scheduler tells it nearby, which need not be in proportion to the level.
    count = len(scheduler.timesteps)
    times, sigmas = ([*values[:count].double().tolist(), 0.0] for values in (scheduler.timesteps, scheduler.sigmas))
    return float(np.interp(at.sigma, sigmas[::-1], times[::-1]))


def timestep_of(table: Tensor, at: Marginal) -> float:
    """The timestep, not rounded, with this ratio of noise to signal in a table of alpha^2 by timesteps."""
    return float(np.interp(math.log(at.sigma / at.alpha), _log_ratios(table), np.arange(len(table))))


def level_of(table: Tensor, time: float) -> float:
    """The level of a timestep, which need not be whole, in a table of alpha^2 by timesteps."""
    ratio = math.exp(log_ratios_of(table, time))
    return ratio / (1 + ratio)


def log_ratios_of(table: Tensor, times: Any) -> Any:
    """log(sigma / alpha) at timesteps, which need not be whole, in a table of alpha^2 by timesteps."""
    return np.interp(times, np.arange(len(table)), _log_ratios(table))


def _log_ratios(table: Tensor) -> Any:
    kept = table.double().cpu().numpy()
    return 0.5 * np.log((1 - kept) / kept)


def prediction_type(scheduler: Any) -> str:
    """What the network's output means: epsilon, v_prediction, sample, flow_prediction, edm or trigflow.

    edm: F of Karras et al. 2022, scaled by the level on its way in and out (also of consistency models); trigflow: as
    in SCM.
    """
    config = scheduler.config
    if getattr(scheduler, "alphas_cumprod", None) is not None:
        return str(config.prediction_type)
    if "sigma_data" in config:
        return "trigflow" if config.get("prediction_type") == "trigflow" else "edm"
    return "flow_prediction"


def x0_prediction(scheduler: Any, at: Marginal, x: Tensor, output: Tensor) -> Tensor:
    """The x0-prediction from latents `x` and network `output`, both [B, ...], at a noise level."""
    return x0_and_eps(prediction_type(scheduler), x, output, at)[0]
