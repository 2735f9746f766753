"""How networks are trained to see noise, each in its own time: linear flows, variance preserving tables and EDM."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import numpy as np
from torch import Tensor

from diffscale._util.errors import DiffscaleError, explained
from diffscale.samplers.formulas import Marginal
from diffscale.samplers.levels import even_levels, karras_levels


class NoiseSchedule(Protocol):
    """What a network's time means, and at which levels it is evaluated.

    `process`: one of `formulas.PROCESSES`. A level is that of `samplers.formulas`: 1 is noise, 0 is clean.
    """

    @property
    def process(self) -> str: ...

    def levels(self, steps: int) -> tuple[float, ...]:
        """The `steps` + 1 levels of a trajectory of `steps` intervals: they fall, and the last is 0."""

    def time(self, at: Marginal) -> float:
        """What the network is told for latents with this alpha and sigma."""


@dataclass(frozen=True)
class LinearFlow:
    """x = (1 - level) data + level noise, with times in [0, 1] and equal steps (Lipman et al. 2022, arXiv 2210.02747).

    `data_time`: the time of clean data. With 0, time is the level, as in rectified flow, Stable Diffusion 3 and FLUX;
    with 1, time runs from noise to data, as in flow matching and SiT. A network that was trained on times multiplied by
    1000 multiplies them itself. `noisiest`: the level to start from, in (0, 1].
    """

    process: ClassVar[str] = "flow"
    data_time: Literal[0, 1] = 0
    noisiest: float = 1.0

    def __post_init__(self) -> None:
        if self.data_time not in (0, 1) or not 0 < self.noisiest <= 1:
            raise DiffscaleError(
                "A linear flow has its data at time 0 or 1 and starts from a level above 0 and up to 1, but data_time="
                f"{self.data_time} and noisiest={self.noisiest} were given."
            )

    def levels(self, steps: int) -> tuple[float, ...]:
        return tuple(self.noisiest * level for level in even_levels(steps))

    def time(self, at: Marginal) -> float:
        return at.sigma if self.data_time == 0 else at.alpha


class VariancePreserving:
    """x = sqrt(a_t) data + sqrt(1 - a_t) noise for timesteps t = 0 to T - 1 (DDPM, Ho et al. 2020, arXiv 2006.11239).

    `alphas_cumprod`: the T numbers a_t that the network was trained with, falling from nearly 1. The network is told t
    as a float, which is whole on a grid of steps that divide T; searches that leave the grid ask for times between: a
    network with a table of times rounds them itself. Steps are equal in t and begin at T - 1 ("trailing", Lin et al.
    2024, arXiv 2305.08891, table 2).
    """

    process = "vp"

    def __init__(self, alphas_cumprod: Tensor | Sequence[float]) -> None:
        given = alphas_cumprod.detach().cpu().double() if isinstance(alphas_cumprod, Tensor) else alphas_cumprod
        with explained("alphas_cumprod must be a list of numbers ({why}).", TypeError, ValueError):
            kept = np.asarray(given, dtype=np.float64)
        if kept.ndim != 1 or len(kept) < 2 or not (kept[-1] >= 0 and kept[0] < 1 and (np.diff(kept) < 0).all()):
            raise DiffscaleError(
                "alphas_cumprod must be a list of numbers that fall from below 1 to 0 at least; give the cumulative "
                "products of 1 - beta that the network was trained with."
            )
        alpha, sigma = kept**0.5, (1 - kept) ** 0.5
        self._levels = sigma / (alpha + sigma)

    def levels(self, steps: int) -> tuple[float, ...]:
        count = len(self._levels)
        if steps > count:
            raise DiffscaleError(f"The network has {count} timesteps, so a sample takes {count} steps at most.")
        times = [count - 1 - i * count / steps for i in range(steps)]
        return (*np.interp(times, np.arange(count), self._levels).tolist(), 0.0)

    def time(self, at: Marginal) -> float:
        # Whole times come out whole, for networks that look them up.
        return round(float(np.interp(at.level, self._levels, np.arange(len(self._levels)))), 6)


@dataclass(frozen=True)
class EDM:
    """x = data + sigma noise, the time is sigma itself (Karras et al. 2022, arXiv 2206.00364).

    The network is D(x, sigma) of the paper, with its preconditioning (equation 7) inside: it takes x as it is. Steps
    are those of equation 5, from `sigma_max` to `sigma_min` and then to 0.
    """

    process: ClassVar[str] = "ve"
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        if not (0 < self.sigma_min < self.sigma_max and self.rho > 0):
            raise DiffscaleError(f"EDM takes 0 < sigma_min < sigma_max and rho above 0, but was given {self}.")

    def levels(self, steps: int) -> tuple[float, ...]:
        return karras_levels(steps, self.sigma_min, self.sigma_max, self.rho)

    def time(self, at: Marginal) -> float:
        return at.sigma / at.alpha
