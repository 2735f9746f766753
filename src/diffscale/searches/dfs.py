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
    scored, by default (ours) 40% and 60% of all. Below the threshold the sample is noised `back` steps up, by default
    (ours) half of all, and comes down again past all the places on that way, where it is scored anew. A sample has so
    many `backtracks` in all; when they are spent, or (ours) the budget does not pay for another, what is below the
    threshold gives way to the best that was seen of this sample at this place. `threshold`: in units of the verifier,
    as in the paper's experiments the same at all places; by default (ours) a sample has to be better than the `share`
    of all that this search has seen at that place. `n`: samples that are finished one after the other (ours: the paper
    makes one), by default as many as the budget pays.

    Raises BudgetTooSmall if the budget does not pay for one sample, DiffscaleError for steps that do not rise.
    """
    afford(env, env.steps, "A sample")
    usual = sorted({max(1, round(each * env.steps)) for each in (0.4, 0.6)} & set(range(env.steps)))
    looks = predictions(env, usual if at is None else at)
    back = max(1, env.steps // 2) if back is None else back
    seen: dict[Look, Tensor] = {}
    while n != 0 and env.nfe_left >= env.steps:
        state, left, ahead = env.prior(1), backtracks, looks
        buffer: dict[Look, list[tuple[State, Tensor]]] = {look: [] for look in looks}
        while ahead:
            look, *ahead = ahead
            state, scores = yield from looked(env, state, look)
            buffer[look].append((state, scores))
            good = _is_good(env, scores, seen.get(look), threshold, share)
            seen[look] = torch.cat([seen[look], scores]) if look in seen else scores
            up = max(0, look.steps - 1 - back)
            if not good and left and env.nfe_left >= env.steps - up:
                left -= 1
                state = env.renoise(state, env.levels[up]) if up else env.prior(1)
                ahead = [each for each in looks if each.steps > up]
            elif not good:
                state = buffer[look][int(env.value(torch.cat([each for _, each in buffer[look]])).argmax())][0]
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
