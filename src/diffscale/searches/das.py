"""DAS: particles whose target is tempered, from the model's own law to the tilted one."""

import math
from typing import Literal

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from diffscale.searches.particles import Units, affordable, in_units, scored_steps, steer
from diffscale.searches.resampling import RESAMPLERS
from diffscale.types import Environment, Search, Share


def das(
    env: Environment,
    k: PositiveInt | None = None,
    strength: NonNegativeFloat = 2.0,
    units: Units = "std",
    gamma: PositiveFloat = 0.008,
    interval: PositiveInt = 1,
    resampler: Literal["systematic", "ssp", "multinomial"] = "ssp",
    ess: Share = 0.5,
    eta: Share | None = 1.0,
) -> Search:
    """Tempered sequential Monte Carlo on the scores of x0-predictions. Price: k steps.

    Diffusion alignment as sampling (DAS, Kim et al. 2025, arXiv 2501.05803): after step s the particles stand for
    p exp(lambda_s strength r), with r the score of the x0-prediction now and lambda_s = min((1 + gamma)^s - 1, 1), so
    that a weight is exp(lambda_s r_s - lambda_(s-1) r_(s-1)) (Potential `tempered`). `gamma`: for a grid of 100 steps;
    on others s is scaled to it (ours). Without the paper's proposals along the gradient of r, which cost more NFE a
    step and take a verifier that has one: particles move by the model alone. `interval`: the paper weighs at every
    step. `k`, `strength`, `units`, `ess` and `eta`: as of `fk`.

    Raises BudgetTooSmall if the budget does not pay for it, DiffscaleError for an `interval` that scores nothing.
    """

    def tempered(step: int) -> float:
        return strength * math.expm1(min(100 * step / env.steps * math.log1p(gamma), math.log(2)))

    yield from steer(
        env, affordable(env, k, "DAS"), at=scored_steps(env, interval), potential="tempered",
        strength=in_units(units, tempered), resample=RESAMPLERS[resampler], threshold=ess, eta=eta,
    )  # fmt: skip
