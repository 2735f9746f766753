"""ReNO: regularised ascent of the noise."""

from typing import Annotated

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from diffscale.searches.ascent import ascend
from diffscale.types import Environment, Search, search_traits


@search_traits(anytime=True)
def reno(
    env: Environment,
    iterations: PositiveInt | None = None,
    rate: PositiveFloat = 0.004,
    clip: PositiveFloat = 0.1,
    weight: NonNegativeFloat = 0.01,
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9,
) -> Search:
    """Gradient ascent on the noise, held to its usual norm by a penalty. Price: 4 iterations steps.

    ReNO (Eyring et al. 2024, arXiv 2406.04312): what rises is r(x) + weight log p(|x|), p the law of the norm of noise
    (chi, of as many degrees as there are numbers). Its gradient is cut to the norm `clip` and followed with Nesterov's
    `momentum`. `rate`: the step of a gradient that was cut, as a share of the norm of noise (ours: 0.004 is what the
    authors' learning rate of 5 takes of latents of 4 x 64 x 64). `weight` and `clip` are in units of the verifier, and
    the authors' are for sums of scores of about 1. The first noise is taken to have the norm that noise has.
    `iterations`: by default as many as the budget pays (paper: 50, of models of one step).

    A verifier without gradient ends it with Unsuited.
    """
    yield from ascend(env, iterations, lambda: Nesterov(rate, clip, weight, momentum))


class Nesterov:
    """The moves of one ascent, see `reno`."""

    def __init__(self, rate: float, clip: float, weight: float, momentum: float) -> None:
        self.rate, self.clip, self.weight, self.momentum = rate, clip, weight, momentum
        self.velocity: Tensor | None = None
        self.scale = 0.0  # the standard deviation of noise, once the first one was seen

    def __call__(self, x: Tensor, g: Tensor) -> Tensor:
        """The next noise [D]."""
        self.scale = self.scale or float(x.norm()) / len(x) ** 0.5
        unit = x / self.scale
        up = g * self.scale + self.weight * log_law_of_norm_slope(unit)
        up = up * self.clip / max(float(up.norm()), self.clip)
        before = torch.zeros_like(up) if self.velocity is None else self.velocity
        self.velocity = self.momentum * before + up
        step = self.rate * len(x) ** 0.5 / self.clip * (up + self.momentum * self.velocity)
        return (unit + step) * self.scale


def log_law_of_norm_slope(x: Tensor) -> Tensor:
    """The gradient [D] of log p(|x|) at `x` [D], p the law of the norm of D standard normal numbers."""
    return ((len(x) - 1) / x.square().sum() - 1) * x
