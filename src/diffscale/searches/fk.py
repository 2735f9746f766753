"""Feynman-Kac steering: particles that are resampled on the way."""

from typing import Literal

from pydantic import NonNegativeFloat, PositiveInt

from diffscale.searches.particles import Potential, Units, affordable, in_units, scored_steps, steer
from diffscale.searches.resampling import RESAMPLERS
from diffscale.types import Environment, Search, Share


def fk(
    env: Environment,
    k: PositiveInt | None = None,
    strength: NonNegativeFloat = 2.0,
    units: Units = "std",
    potential: Potential = "max",
    interval: PositiveInt | None = None,
    resampler: Literal["systematic", "ssp", "multinomial"] = "systematic",
    ess: Share = 0.5,
    eta: Share | None = 1.0,
) -> Search:
    """Sequential Monte Carlo on the scores of x0-predictions. Price: k steps.

    FK steering (Singhal et al. 2025, arXiv 2501.06848, section 4, algorithm 1). `k`: particles, by default as many as
    the budget pays (paper: 4). `strength`: the paper's lambda; in `raw` units of the verifier, as in the paper, or in
    standard deviations of the particles' values at that step (`std`, ours: verifiers differ by orders of magnitude).
    `potential`: of the max, difference or sum of a particle's scores, the current one, or `tempered`, the current one
    with all potentials before taken back. `interval`: steps between scorings, by default a fifth of all. `resampler`:
    when the effective sample size is below `ess` k. `eta`: share of fresh noise in each step, see `formulas.denoise`;
    null for the solver's own noise.

    Raises BudgetTooSmall if the budget does not pay for it, DiffscaleError for an `interval` that scores nothing.
    """
    at = scored_steps(env, interval)
    yield from steer(
        env, affordable(env, k, "FK steering"), at=at, potential=potential,
        strength=in_units(units, lambda _: strength), resample=RESAMPLERS[resampler], threshold=ess, eta=eta,
    )  # fmt: skip
