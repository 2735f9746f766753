"""Successive halving over noises: cheap looks at many candidates decide which are looked at closer, and finished.

Karnin et al. 2013 and Jamieson and Talwalkar 2016 (arXiv 1502.07943) halve by the last look alone; here the looks of
earlier rounds count on, with the weights of a linear regression.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from diffscale._util.errors import BudgetTooSmall, DiffscaleError
from diffscale.searches.looks import Agreement, Look
from diffscale.types import Answer, Environment, Search, State, concat


def price(env: Environment, looks: Sequence[Look], sizes: Sequence[int]) -> int:
    """NFE of the rounds: `sizes` has how many candidates each look sees, and then how many are finished."""
    # Of several pools each is rounded up by itself.
    nfe, along, pools = 0, 0, _parts(env, sizes[0])
    for look, size in zip(looks, sizes, strict=False):
        if look.on_the_way:
            nfe, along = nfe + size * (look.steps - along), look.steps
        else:
            nfe += math.ceil(round(size * env.draft_nfe(look.steps, look.via), 9)) + pools - 1
    return nfe + sizes[-1] * (env.steps - along)


def predictions(env: Environment, at: Sequence[int]) -> list[Look]:
    """Looks at x0-predictions after these numbers of steps; raises DiffscaleError, before anything is paid for, unless
    they rise below all and can be had."""
    if list(at) != sorted(set(at)) or not all(0 < each < env.steps for each in at):
        raise DiffscaleError(f"Steps to look at rise and stay below {env.steps}, but these do not: {tuple(at)}.")
    if not set(at) <= set(env.predicts):
        raise DiffscaleError(
            f"Predictions after {', '.join(map(str, at))} steps cannot be scored here: the model is run whole, or the "
            "verifier compares finished pictures with predictions, or the tape has none. Look after other steps, or at "
            "none of them."
        )
    return [Look(each, on_the_way=True) for each in at]


def sizes_between(n: int, finals: int, rounds: int) -> list[int]:
    """How many candidates each of the rounds sees, from `n` down by the same factor each time, and then `finals`."""
    return [max(finals, round(n * (finals / n) ** (i / rounds))) for i in range(rounds)] + [finals]


def affordable(
    env: Environment, looks: Sequence[Look], share: float, budget: int, finals: int | None = None, least: int = 1
) -> list[int]:
    """The sizes of the largest pool that `budget` pays for, where `finals`, else the `share` of it, are finished, and
    no fewer than `least`.

    [] if it does not pay for any.
    """

    def sizes(n: int) -> list[int]:
        return sizes_between(n, finals or max(least, round(n * share)), len(looks))

    def fits(sizes: list[int]) -> bool:
        return price(env, looks, sizes) <= budget and _parts(env, sizes[0]) <= sizes[-1]

    # Every candidate costs 1 NFE or more, or a share of it that is not measured to be less than a tenth.
    low, high = (finals or least) - 1, 10 * budget
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(sizes(middle)) else (low, middle - 1)
    return sizes(low) if low >= (finals or least) else []


def _parts(env: Environment, n: int) -> int:
    """How many pools `n` candidates are looked at in, one after the other, so that none has too many rows."""
    return math.ceil(n / max(1, env.most_rows))


def chosen_sizes(
    env: Environment, looks: Sequence[Look], n: int | None, finals: int | None, share: float | None, usual: float
) -> list[int]:
    """The sizes for what the user gave of `n`, and of `finals` or `share`, else of the `usual` share and what the
    budget pays for.

    Raises DiffscaleError for what contradicts itself, BudgetTooSmall if the budget does not pay for that.
    """
    if finals is not None and share is not None:
        raise DiffscaleError(f"finals={finals} and share={share} both say how many are finished: leave one out.")
    if n is not None and finals is not None and finals > n:
        raise DiffscaleError(f"Of n={n} candidates no more can be finished, but finals={finals}: give fewer finals.")
    share = usual if share is None else share
    if n is None:
        # As many are finished as are to be kept, if the budget pays for that.
        found = (affordable(env, looks, share, env.nfe_left, finals, least) for least in (env.wanted, 1))
        sizes = next((each for each in found if each), [])
    else:
        sizes = sizes_between(n, finals or max(1, round(n * share)), len(looks))
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
    both_ends: bool = False,
) -> Search:
    """Look in rounds, each at the best of the last one, and finish the best of the last; arguments as of `price`.

    With `both_ends` half of those that are kept are the worst.

    `known`: candidates that have had the first look already, and their scores; they count among the first size. More
    fresh ones than can be made at once are so many pools, with equal shares of `sizes`.
    """
    fresh = max(0, sizes[0] - (0 if known is None else len(known[0])))
    parts = max(1, min(_parts(env, fresh), sizes[-1]))
    for part in range(parts):
        mine = [size * (part + 1) // parts - size * part // parts for size in (fresh, *sizes[1:])]
        yield from _halve(env, looks, mine, agreement, known if part == 0 else None, both_ends)


def _halve(
    env: Environment,
    looks: Sequence[Look],
    sizes: Sequence[int],
    agreement: Agreement,
    known: tuple[State, Tensor] | None,
    both_ends: bool,
) -> Search:
    """As `halve`, in one pool, whose first size has fresh candidates alone."""
    numbers = agreement.numbers(looks, env.steps)
    pool = [] if known is None else [known]
    if sizes[0]:
        pool.append((yield from looked(env, env.prior(sizes[0]), looks[0])))
    state, first = concat([each for each, _ in pool]), torch.cat([scores for _, scores in pool])
    seen: list[Tensor] = []
    for number, (look, kept) in enumerate(zip(looks, sizes[1:], strict=True)):
        state, scores = (state, first) if number == 0 else (yield from looked(env, state, look))
        seen.append(standardised(env.value(scores)))
        worth = (agreement.weights(numbers[: number + 1])[:, None] * torch.stack(seen)).sum(0)
        worth[~torch.stack(seen).isfinite().all(0)] = -math.inf  # dropped by one look, whatever its weight
        chosen = _kept(worth, kept, both_ends)
        state, seen = state[chosen], [each[chosen] for each in seen]
    yield from env.evaluate(state)


def _kept(worth: Tensor, kept: int, both_ends: bool) -> Tensor:
    """The places of the best `kept` of `worth` [n], or of the best and the worst half of it: int64, rising."""
    order = worth.argsort(descending=True, stable=True)
    if both_ends and kept > 1:
        scored = order[worth[order] > -math.inf]  # what was dropped is not the worst, but unknown
        usable = min(kept, len(scored))
        half = usable // 2
        order = torch.cat([scored[: usable - half], scored[len(scored) - half :], order[len(scored) :]])
    return order[:kept].sort().values


def looked(env: Environment, state: State, look: Look) -> Answer[tuple[State, Tensor]]:
    """Look at candidates: their states afterwards, and the scores."""
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
