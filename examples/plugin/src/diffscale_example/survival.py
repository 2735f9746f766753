"""An evolutionary search over noises."""

import torch

from diffscale import DiffscaleError, Environment, Search, concat


def survival(env: Environment, population: int = 8, cosine: float = 0.9) -> Search:
    """Evolution of noises: the better half survives, and each survivor has one mutant. Price: all of the budget.

    `population`: noises of a generation, 2 or more. `cosine`: the similarity of a mutant to its parent, in (-1, 1).
    Raises DiffscaleError for a population of less than 2.
    """
    if population < 2:
        raise DiffscaleError(f"Survival takes a population of 2 or more, not {population}.")
    parents = env.prior(max(1, min(population, env.nfe_left // env.steps)))
    scores = yield from env.evaluate(parents)
    while (affordable := env.nfe_left // env.steps) > 0:
        # An ensemble compares candidates with each other: `value` gives one number a row.
        best = env.value(scores).argsort(descending=True, stable=True)[: max(1, population // 2)]
        survivors, kept = parents[best], scores[best]
        children = env.mutate(survivors[: min(affordable, len(survivors))], cosine)
        found = yield from env.evaluate(children)
        parents, scores = concat([survivors, children]), torch.cat([kept, found])
