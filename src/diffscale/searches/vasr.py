"""VASR: particles resampled at every step by mass w exp(r), with one draw for all."""

from typing import Literal

from pydantic import NonNegativeFloat, PositiveInt

from diffscale.searches.particles import Units, affordable, in_units, scored_steps, steer
from diffscale.searches.resampling import systematic
from diffscale.types import Environment, Search, Share


def vasr(
    env: Environment,
    k: PositiveInt | None = None,
    strength: NonNegativeFloat = 2.0,
    units: Units = "std",
    select: Literal["mass", "max"] = "mass",
    interval: PositiveInt = 1,
    eta: Share | None = 1.0,
) -> Search:
    """A particle of weight w and score r has offspring by its mass w exp(r), all by one draw. Price: k steps.

    Variance-aware systematic resampling (Shekhar et al. 2026, arXiv 2604.06779): the mass w exp(r) has the least
    variance of what comes after, systematic resampling that of the numbers of offspring. An offspring's weight is
    w / mass = exp(-r), which the next mass starts from (Potential `tempered`). `select`: `max` stands for the paper's
    VASR-Max, which is biased towards high scores where early ones are noisy: the mass is exp(strength max r) along a
    particle's ancestry, whatever it was resampled by before. That formula, resampling at every `interval` even where
    masses are even, and `strength` by `units` (as of `fk`) are ours: we had the paper's abstract alone.

    Raises BudgetTooSmall if the budget does not pay for it, DiffscaleError for an `interval` that scores nothing.
    """
    at = scored_steps(env, interval)
    yield from steer(
        env, affordable(env, k, "VASR"), at=at, potential="tempered" if select == "mass" else "max",
        strength=in_units(units, lambda _: strength), resample=systematic, threshold=1, eta=eta,
    )  # fmt: skip
