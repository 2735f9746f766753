"""Successive halving over noises: cheap looks at many candidates decide which are looked at closer, and finished.

Karnin et al. 2013 and Jamieson and Talwalkar 2016 (arXiv 1502.07943) halve by the last look alone; here the looks of
earlier rounds count on, with the weights of a linear regression.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from diffscale._util.errors import BudgetTooSmall
from diffscale.searches.looks import Agreement, Look, weights_of
from diffscale.types import Answer, Environment, Search, State, concat


def price(env: Environment, looks: Sequence[Look], sizes: Sequence[int]) -> int:
    """NFE of the rounds: `sizes` has how many candidates each look sees, and then how many are finished."""
    nfe, along = 0, 0
    for look, size in zip(looks, sizes, strict=False):
        if look.on_the_way:
            nfe, along = nfe + size * (look.steps - along), look.steps
        else:
            nfe += math.ceil(round(size * env.draft_nfe(look.steps, look.via), 9))
    return nfe + sizes[-1] * (env.steps - along)


def sizes_between(n: int, finals: int, rounds: int) -> list[int]:
    """How many candidates each of the rounds sees, from `n` down by the same factor each time, and then `finals`."""
    return [max(finals, round(n * (finals / n) ** (i / rounds))) for i in range(rounds)] + [finals]


def affordable(
    env: Environment, looks: Sequence[Look], share: float, budget: int, finals: int | None = None
) -> list[int]:
    """The sizes of the largest pool that `budget` pays for, where `finals`, else the `share` of it, are finished.

    [] if it does not pay for any.
    """

    def sizes(n: int) -> list[int]:
        return sizes_between(n, finals or max(1, round(n * share)), len(looks))

    # Every candidate costs 1 NFE or more, or a share of it that is not measured to be less than a tenth.
    low, high = (finals or 1) - 1, 10 * budget
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if price(env, looks, sizes(middle)) <= budget else (low, middle - 1)
    return sizes(low) if low >= (finals or 1) else []


def chosen_sizes(env: Environment, looks: Sequence[Look], n: int | None, finals: int | None, share: float) -> list[int]:
    """The sizes for what the user gave of `n` and `finals`, else what the budget pays for.

    Raises BudgetTooSmall if it does not pay for that.
    """
    if n is None:
        sizes = affordable(env, looks, share, env.nfe_left, finals)
    else:
        sizes = sizes_between(n, min(n, finals or max(1, round(n * share))), len(looks))
    least = sizes or [finals or 1] * (len(looks) + 1)
    if (cost := price(env, looks, least)) > env.nfe_left:
        raise BudgetTooSmall(
            f"Looking at {least[0]} candidates and finishing {least[-1]} costs {cost} NFE and the budget is "
            f"{env.nfe_left}: give at least that, or ask for less."
        )
    return least


def halve(
    env: Environment,
    looks: Sequence[Look],
    sizes: Sequence[int],
    agreement: Agreement,
    known: tuple[State, Tensor] | None = None,
) -> Search:
    """Look in rounds, each at the best of the last one, and finish the best of the last; arguments as of `price`.

    `known`: candidates that have had the first look already, and their scores; they count among the first size.
    """
    weights = weights_of(env, looks, agreement)
    fresh = sizes[0] - (0 if known is None else len(known[0]))
    state, first = yield from _looked(env, env.prior(fresh), looks[0])
    if known is not None:
        state, first = concat([known[0], state]), torch.cat([known[1], first])
    seen: list[Tensor] = []
    for number, (look, kept) in enumerate(zip(looks, sizes[1:], strict=True)):
        state, scores = (state, first) if number == 0 else (yield from _looked(env, state, look))
        seen.append(standardised(env.value(scores)))
        worth = (torch.tensor(weights[number], dtype=torch.float64)[:, None] * torch.stack(seen)).sum(0)
        worth[~torch.stack(seen).isfinite().all(0)] = -math.inf  # dropped by one look, whatever its weight
        best = worth.argsort(descending=True, stable=True)[:kept].sort().values
        state, seen = state[best], [each[best] for each in seen]
    yield from env.evaluate(state)


def _looked(env: Environment, state: State, look: Look) -> Answer[tuple[State, Tensor]]:
    if not look.on_the_way:
        return state, (yield from env.draft(state, look.steps, look.via))
    state = yield from env.run(state, look.steps - 1)
    state = yield from env.predict(state)
    return state, (yield from env.score(state))


def standardised(values: Tensor) -> Tensor:
    """`values` [n] less their mean, over their standard deviation; equal ones are 0, and -inf stays."""
    finite = values[values.isfinite()]
    spread = float(finite.std(correction=0)) if len(finite) else 0.0
    return (values - finite.mean()) / (spread or 1.0) if len(finite) else values
