"""Halving: drop candidates on their way, as the scores of their x0-predictions say."""

from pydantic import PositiveInt

from diffscale._util.errors import DiffscaleError
from diffscale.searches.agreements import TYPICAL
from diffscale.searches.rounds import chosen_sizes, halve, predictions
from diffscale.types import Environment, PositiveShare, Search


def halving(
    env: Environment,
    at: tuple[PositiveInt, ...] | None = None,
    n: PositiveInt | None = None,
    finals: PositiveInt | None = None,
    share: PositiveShare | None = None,
) -> Search:
    """Start n samples, and go on with the best x0-predictions only. Price: n at[0] + ... + finals (T - at[-1]).

    Successive halving (Jamieson and Talwalkar 2016, arXiv 1502.07943) over the steps. `at`: numbers of steps after
    which the x0-predictions are scored, by default 35% and 55% of all. Each round keeps the same fraction, so that
    `finals` are finished, by default the `share` of n, an eighth; `n`: by default as many as the budget pays.

    Raises BudgetTooSmall if the budget does not pay for it, DiffscaleError for steps that do not rise, and for
    options that contradict one another.
    """
    wanted = tuple(sorted({max(1, round(each * env.steps)) for each in (0.35, 0.55)})) if at is None else at
    if env.steps < 2:
        raise DiffscaleError("A model of one step has no predictions on its way: use another search.")
    if not wanted:
        raise DiffscaleError("Halving looks after one number of steps or more: give at, or leave it out.")
    looks = predictions(env, wanted)
    yield from halve(env, looks, chosen_sizes(env, looks, n, finals, share, usual=1 / 8), TYPICAL)
