"""Zero-order search: walk from noise to neighbouring noise, as the verifier says."""

from typing import Annotated, Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveInt

from diffscale._util.errors import DiffscaleError
from diffscale.types import Environment, Search, concat, search_traits


@search_traits(anytime=True)
def zero_order(
    env: Environment,
    n: PositiveInt = 2,
    cosine: Annotated[float, Field(gt=-1, lt=1)] = 0.95,
    policy: Literal["best", "greedy", "restart"] = "best",
    iterations: NonNegativeInt | None = None,
) -> Search:
    """The best of n neighbours of a pivot noise is the next pivot. Price: (iterations n + (0 if best else 1)) steps.

    Paper A (Ma et al. 2025, arXiv 2501.09732), section 3.2; neighbours as its authors write them, see
    `noise.neighbours`. `cosine`: similarity to the pivot, smaller is a larger stride. `policy`: `best`
    always moves to the best neighbour, so the first pivot is never sampled; `greedy` (ours) moves only when that is
    better than the pivot; `restart` (the authors' code) draws a fresh pivot when it is not, which is the first of the
    next n candidates. Both pay for the first pivot, and for no pivot twice. `iterations`: by default as many as the
    budget pays; the last one may have fewer neighbours. The best ever seen is returned.

    Raises DiffscaleError for 0 `iterations` of the policy `best`, which would sample nothing.
    """
    if iterations == 0 and policy == "best":
        raise DiffscaleError("With policy=best the first pivot is not sampled: give iterations=1 or more.")
    pivot = env.prior(1)
    pivot_score = None if policy == "best" else (yield from env.evaluate(pivot))
    fresh = False
    while iterations != 0 and (now := min(n, env.nfe_left // env.steps)):
        # As many as ever, so that a last iteration of fewer is a part of a whole one.
        if fresh:
            near = concat([pivot, env.neighbours(pivot, n - 1, cosine)]) if n > 1 else pivot
        else:
            near = env.neighbours(pivot, n, cosine)
        near = near[:now]
        scores = yield from env.evaluate(near)
        # An ensemble ranks the pivot with its neighbours.
        values = env.value(scores if pivot_score is None else torch.cat([scores, pivot_score]))
        best = int(values[:now].argmax())
        improved = bool(values[best] > (float("-inf") if pivot_score is None else values[now]))
        fresh = policy == "restart" and not improved
        if fresh:
            pivot, pivot_score = env.prior(1), None
        elif policy == "best" or improved:
            pivot, pivot_score = near[[best]], None if policy == "best" else scores[[best]]
        iterations = None if iterations is None else iterations - 1
