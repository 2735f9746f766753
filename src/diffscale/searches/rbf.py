"""Rollover budget forcing: try noises at each step until one improves, and spend later what was not needed."""

import math
from typing import Literal

import torch
from pydantic import PositiveInt
from torch import Tensor

from diffscale.searches.budget import afford
from diffscale.types import Environment, PositiveShare, Search, State


def rbf(
    env: Environment,
    n: PositiveInt | None = None,
    quota: PositiveInt | None = None,
    levels: Literal["own", "vp"] = "own",
    eta: PositiveShare = 1.0,
) -> Search:
    """Noises of a step are tried until one is better than all before. Price: n + quota (steps - 1), + steps for vp.

    Rollover budget forcing (Kim et al. 2025, arXiv 2503.19385, algorithm 1, and its authors' code). The best
    x0-prediction of n noises begins; then at each step at most `quota` children are tried, one after the other. The
    first that is better than every score so far goes on, and what its step did not use rolls over to the next; if there
    is none, the best of the step goes on. The last step uses up all that is left. `quota`: by default as many as the
    budget pays; `n`: by default a twentieth of it (the authors: 25 of 500).

    `levels`: `vp` is the paper's change of a flow's interpolant from linear to variance preserving. At the same
    signal-to-noise ratio the two have the same laws but for the scale, and a step with `eta` 1 draws from the posterior
    of that ratio whatever the scale is; so what the change comes to is where the steps lie, namely at even times of the
    VP schedule, early steps close to pure noise. Between levels of the grid that draw is a deterministic step beyond
    the level and noising back up to it, which has the same law, and costs each step 1 NFE more. `eta`: share of fresh
    noise in the grid's own steps.

    Raises BudgetTooSmall if the budget does not pay for it.
    """
    steps, more = env.steps - 1, env.steps if levels == "vp" else 0
    first = n or max(1, env.nfe_left // 20)
    if quota is None:
        quota = max(1, (env.nfe_left - more - first) // max(1, steps))
        first = n or max(1, env.nfe_left - more - quota * steps)
    afford(env, first + quota * steps + more, f"Rollover budget forcing with n={first}, quota={quota}, levels={levels}")
    places = vp_levels(env.levels[0], env.steps)
    state = yield from env.predict(env.prior(first))
    scores = yield from env.score(state)
    best = int(env.value(scores).argmax())
    state, record = state[[best]], scores[[best]]
    unused = 0
    for step in range(1, env.steps):
        if levels == "vp":
            state = yield from env.solve(state, beyond(places[step - 1], places[step]), 1)
        left, here = quota + unused, None
        while left:
            rows = 1 if step < steps else min(left, env.chunk)  # nothing rolls over from the last step
            parents = state.repeat(rows)  # all their chance is drawn below, so it does not depend on the chunk
            children = env.renoise(parents, places[step]) if levels == "vp" else env.step(parents, eta=eta)
            children = yield from env.predict(children)
            scores = yield from env.score(children)
            left -= rows
            here, improved = _better(env, here, (children, scores), record)
            if improved and step < steps:
                break
        assert here is not None
        unused, (state, scores) = left, here
        values = env.value(torch.cat([record, scores]))
        record = scores if values[1] > values[0] else record
    if levels == "vp":
        state = yield from env.solve(state, 0.0, 1)
    else:
        state = env.step(state, eta=eta)
    yield from env.score(state)


def _better(
    env: Environment, here: tuple[State, Tensor] | None, found: tuple[State, Tensor], record: Tensor
) -> tuple[tuple[State, Tensor], bool]:
    """The better one of the best `here` and of what was `found`, and whether it is better than the `record`."""
    state, scores = found
    values = env.value(torch.cat([record, scores] if here is None else [record, scores, here[1]]))
    best = 1 + int(values[1 : 1 + len(scores)].argmax())
    improved = bool(values[best] > values[0])
    if here is not None and values[-1] >= values[best]:
        return here, improved
    return (state[[best - 1]], scores[[best - 1]]), improved


def vp_levels(top: float, steps: int) -> list[float]:
    """Noise levels, falling from `top` to 0, at even times of a VP schedule whose beta rises from 0.1 to 20.

    -log alpha is r^2 (20 - 0.1) / 4 + r 0.1 / 2 at time r in [0, 1] (Song et al. 2021, arXiv 2011.13456, equation 33);
    the time of `top` is where that has its signal-to-noise ratio, and 1 at most.
    """
    low, high = 0.1, 20.0
    depth = 0.5 * math.log1p((top / (1 - top)) ** 2) if top < 1 else math.inf
    slope = (high - low) / 2
    began = min(1.0, ((low / 2) ** 2 + 2 * slope * depth) ** 0.5 / slope - low / 2 / slope)
    places = [top]
    for i in range(1, steps):
        time = began * (1 - i / steps)
        log_alpha = -(slope * time**2 + low * time) / 2
        alpha, sigma = math.exp(log_alpha), (-math.expm1(2 * log_alpha)) ** 0.5
        places.append(sigma / (alpha + sigma))
    return [*places, 0.0]


def beyond(at: float, to: float) -> float:
    """The level to go to, without noise, from level `at`, so that noising up to `to` makes it a draw of the posterior.

    The posterior q(x_to | x_at, x0) keeps eps times alpha_at sigma_to^2 / (alpha_to sigma_at); at the level with
    sigma / alpha = (sigma_to / alpha_to)^2 / (sigma_at / alpha_at) that is sigma, times the noising's alpha_to / alpha.
    """
    ratio = (to / (1 - to)) ** 2 * (1 - at) / at
    return ratio / (1 + ratio)
