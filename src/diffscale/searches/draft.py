"""Draft search: sample many noises in few steps, and the best of them in all."""

from pydantic import PositiveInt

from diffscale._util.errors import DiffscaleError
from diffscale.searches.agreements import TYPICAL
from diffscale.searches.looks import Look
from diffscale.searches.rounds import chosen_sizes, halve, predictions
from diffscale.types import Environment, PositiveShare, Search


def draft(
    env: Environment,
    steps: tuple[PositiveInt, ...] | None = None,
    n: PositiveInt | None = None,
    finals: PositiveInt | None = None,
    at: tuple[PositiveInt, ...] = (),
    share: PositiveShare | None = None,
    via: str = "",
    both_ends: bool = False,
) -> Search:
    """Draft n noises in few steps, the best again in more, and finish the best. Price: n steps[0] + ... + finals T.

    Drafts of the same noise by the same solver rank much as the finished samples do (`docs/frontier.md`), for a fifth
    of their price. `steps`: of the drafts of each round, by default one round of a quarter of all, or of as many as
    suit `via`. `at`: then x0-predictions are looked at after these numbers of steps of the way itself, as in `halving`.
    Each round keeps the same fraction of its candidates, so that `finals` are finished, by default the `share` of n,
    a twelfth; `n`: by default as many as the budget pays. Scores of earlier rounds count on. `via`: see `types.Draft`.
    `both_ends`: half of those that are finished are the worst, as training on the samples that differ most wants it;
    then a quarter is finished by default.

    Raises BudgetTooSmall if the budget does not pay for it, DiffscaleError for a model that cannot be drafted so,
    and for options that contradict one another.
    """
    if both_ends and finals == 1:
        raise DiffscaleError("With both_ends a best and a worst one are finished: give finals=2 or more.")
    wanted = steps or (env.draft_steps(via),)
    looks = [Look(each, via) for each in wanted] + predictions(env, at)
    sizes = chosen_sizes(env, looks, n, finals, share, usual=1 / 4 if both_ends else 1 / 12)
    yield from halve(env, looks, sizes, TYPICAL, both_ends=both_ends)
