"""Markov chains over noises, which never leave the law of noise but for the scores."""

from typing import Annotated

import torch
from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor

from diffscale.searches.particles import Units, unit_of
from diffscale.types import Environment, Search, concat, search_traits


@search_traits(anytime=True)
def pcn(
    env: Environment,
    chains: PositiveInt = 4,
    cosine: Annotated[float, Field(ge=0, lt=1)] = 0.9,
    strength: NonNegativeFloat = 4.0,
    units: Units = "std",
) -> Search:
    """Metropolis and Hastings's chains over noises, by preconditioned Crank-Nicolson moves. Price: candidates * steps.

    Cotter et al. 2013 (doi 10.1214/13-STS421): x' = c x + sqrt(1 - c^2) xi, xi a fresh noise, is reversible with
    respect to the law of noise, so that accepting it with probability min(1, exp(strength (r' - r))) leaves the law
    p(x) exp(strength r(x)) as it is, in any dimension. (Neighbours of `zero_order` do so too, but keep the norm of the
    noise for ever.) `chains`: at a time, each its own; `cosine`: c, smaller is a larger stride. `strength`: in `raw`
    units of the verifier, or in standard deviations of all values seen so far (`std`: verifiers differ by orders of
    magnitude; the law is then left only in the limit). A dropped candidate is never moved to.
    """
    here = env.prior(min(chains, env.nfe_left // env.steps))
    if not len(here):
        return
    seen = yield from env.evaluate(here)
    at = torch.arange(len(here))  # where in `seen` the chains are
    while now := min(len(here), env.nfe_left // env.steps):
        # For all chains, so that a last move of fewer is a part of the whole one.
        fresh = env.prior(len(here)).x[:now].float()
        moved = env.start(cosine * here.x[:now].float() + (1 - cosine**2) ** 0.5 * fresh)
        seen = torch.cat([seen, (yield from env.evaluate(moved))])
        new = torch.arange(len(seen) - now, len(seen))
        values = env.value(seen)
        accepted = env.uniform(now).log() < _log_ratio(values, new, at[:now], strength, units)
        at[:now] = torch.where(accepted, new, at[:now])
        rows = torch.arange(len(here))
        rows[:now] = torch.where(accepted, rows[:now] + len(here), rows[:now])
        here = concat([here, moved])[rows]


def _log_ratio(values: Tensor, new: Tensor, old: Tensor, strength: float, units: Units) -> Tensor:
    gain = values[new] - values[old]
    # Where a chain begins at a dropped candidate, it moves on; to a dropped one it does not.
    gain = torch.where(gain.isnan(), 0.0, gain)
    return torch.where(gain.isinf(), gain, strength * gain / unit_of(units, values))
