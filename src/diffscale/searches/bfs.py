"""Breadth-first search: particles with resampling at a temperature that rises over the steps."""

from typing import Literal

from pydantic import NonNegativeFloat, PositiveInt

from diffscale.searches.particles import Potential, Units, affordable, in_units, scored_steps, steer
from diffscale.searches.resampling import RESAMPLERS
from diffscale.types import Environment, Search, Share


def bfs(
    env: Environment,
    k: PositiveInt | None = None,
    strength: NonNegativeFloat = 2.0,
    units: Units = "std",
    potential: Potential = "max",
    interval: PositiveInt | None = None,
    resampler: Literal["systematic", "ssp", "multinomial"] = "ssp",
    eta: Share | None = 1.0,
) -> Search:
    """Each of k particles has as many children as its best score so far earns, ever more so. Price: k steps.

    Breadth-first search (Zhang et al. 2025, arXiv 2505.23614): at every scoring the particles are resampled by
    softmax(tau v), with v the max of a particle's scores, the numbers of children by Srinivasan's sampling process, and
    tau rising. `strength`: the mean of tau, which rises from 0 to twice that in proportion to the steps done (ours; the
    authors' code for ImageNet takes alpha_t / alpha_(t-1) over its mean). `k`, `units`, `potential`, `interval` and
    `eta`: as of `fk`, of which this is a setting but for tau.

    Raises BudgetTooSmall if the budget does not pay for it, DiffscaleError for an `interval` that scores nothing.
    """
    at = scored_steps(env, interval)
    rising = in_units(units, lambda step: 2 * strength * step / env.steps)
    yield from steer(
        env, affordable(env, k, "Breadth-first search"), at=at, potential=potential, strength=rising,
        resample=RESAMPLERS[resampler], threshold=1, eta=eta,
    )  # fmt: skip
