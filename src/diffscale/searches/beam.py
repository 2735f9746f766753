"""Beam search: of all children of all beams the best go on."""

from pydantic import PositiveInt

from diffscale.searches.budget import afford
from diffscale.searches.particles import scored_steps, steer
from diffscale.searches.resampling import top
from diffscale.types import Environment, Search, Share


def beam(
    env: Environment,
    k: PositiveInt | None = None,
    m: PositiveInt | None = None,
    interval: PositiveInt = 1,
    eta: Share | None = 1.0,
) -> Search:
    """The k best x0-predictions of m children of each of k go on. Price: k steps + k (m - 1) per scoring.

    Beam search over the steps, as DSearch (Li et al. 2025, arXiv 2503.02039) and others have it: where `svdd` keeps one
    child of each parent, here the best of all are kept, whoever they descend from. `interval`: steps between scorings,
    at which each beam has its m children, which differ by the noise of that step. `k`: by default as many as the
    budget pays; `m`: by default 4, or as many as it pays for one beam. `eta`: as of `svdd`.

    Raises BudgetTooSmall if the budget does not pay for it, DiffscaleError for an `interval` that scores nothing.
    """
    at = scored_steps(env, interval)
    if m is None:
        m = min(4, max(1, (env.nfe_left // (k or 1) - env.steps) // max(1, len(at)) + 1))
    price = env.steps + (m - 1) * len(at)
    k = max(1, env.nfe_left // price) if k is None else k
    afford(env, k * price, f"Beam search with k={k}, m={m}")
    yield from steer(
        env, [k] * env.steps, at=at, children=m, potential="current", strength=lambda *_: 1.0, resample=top,
        threshold=1, eta=eta,
    )  # fmt: skip
