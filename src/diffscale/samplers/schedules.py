"""Schedules for samplers of our own: what the latents mean, what the network says, and which levels to go through."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from diffscale._util.errors import DiffscaleError
from diffscale.samplers.formulas import Marginal, marginal


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


def even(steps: int) -> tuple[float, ...]:
    """Levels from 1 to 0 in equal steps: the uniform times of a linear flow."""
    return (*(1 - i / steps for i in range(steps)), 0.0)


def karras(steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> tuple[float, ...]:
    """Levels of the EDM schedule, for `ve`: sigmas whose 1/rho-th powers fall evenly, then 0.

    Karras et al. 2022 (arXiv 2206.00364), equation 5.
    """
    first, last = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    share = [i / max(steps - 1, 1) for i in range(steps)]
    sigmas = [(first + part * (last - first)) ** rho for part in share]
    return (*(sigma / (1 + sigma) for sigma in sigmas), 0.0)
