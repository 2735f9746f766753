"""Depth-first search: go down one way, and back up from where it does not look good."""

import torch
from pydantic import FiniteFloat, PositiveInt
from torch import Tensor

from diffscale.searches.budget import afford
from diffscale.searches.looks import Look
from diffscale.searches.rounds import looked, predictions
from diffscale.types import Environment, Search, Share, State


def dfs(
    env: Environment,
    at: tuple[PositiveInt, ...] | None = None,
    threshold: FiniteFloat | None = None,
    share: Share = 0.5,
    back: PositiveInt | None = None,
    backtracks: PositiveInt = 4,
    n: PositiveInt | None = None,
) -> Search:
    """Denoise one sample; where its x0-prediction looks bad, noise it again and retry. Price: all of the budget.

    Depth-first search (Zhang et al. 2025, arXiv 2505.23614). `at`: numbers of steps after which the x0-prediction is
    scored, by default 40% and 60% of all. Below the threshold the sample is noised `back` steps up, by default half of
    all, and comes down again; each sample has so many `backtracks`, and when they are spent, the best that was seen at
    this place goes on. `threshold`: in units of the verifier; by default (ours) a sample has to be better than the
    `share` of all that this search has seen at that place. `n`: samples that are finished, by default as many as the
    budget pays.

    Raises BudgetTooSmall if the budget does not pay for one sample, DiffscaleError for steps that do not rise.
    """
    afford(env, env.steps, "A sample")
    usual = sorted({max(1, round(each * env.steps)) for each in (0.4, 0.6)} & set(range(env.steps)))
    looks = predictions(env, usual if at is None else at)
    back = max(1, env.steps // 2) if back is None else back
    seen: dict[Look, Tensor] = {}
    while n != 0 and env.nfe_left >= env.steps:
        state, left = env.prior(1), backtracks
        for look in looks:
            up = max(0, look.steps - 1 - back)
            tried: list[tuple[State, Tensor]] = []
            while True:
                state, scores = yield from looked(env, state, look)
                tried.append((state, scores))
                good = _is_good(env, scores, seen.get(look), threshold, share)
                seen[look] = torch.cat([seen[look], scores]) if look in seen else scores
                if good or not left or env.nfe_left < env.steps - up:
                    break
                left -= 1
                state = env.renoise(state, env.levels[up]) if up else env.prior(1)
            state = tried[-1 if good else int(env.value(torch.cat([each for _, each in tried])).argmax())][0]
        yield from env.evaluate(state)
        n = None if n is None else n - 1


def _is_good(env: Environment, scores: Tensor, before: Tensor | None, threshold: float | None, share: float) -> bool:
    """Whether the one of `scores` goes on, by the threshold or by those seen `before`."""
    values = env.value(scores if before is None else torch.cat([before, scores]))
    if not values[-1].isfinite():
        return False
    if threshold is not None:
        return bool(values[-1] >= threshold)
    return before is None or float((values[:-1] < values[-1]).double().mean()) >= share
