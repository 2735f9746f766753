"""Free2Guide: at some steps, choose the noise by a reward that needs no gradient."""

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt

from diffscale._util.errors import DiffscaleError
from diffscale.searches.budget import afford
from diffscale.types import Environment, PositiveShare, Search


def free2guide(
    env: Environment,
    k: PositiveInt | None = None,
    guided: NonNegativeInt = 5,
    temperature: NonNegativeFloat = 0.0,
    eta: PositiveShare = 1.0,
) -> Search:
    """At the first guided steps one of k noises is chosen by its score. Price: steps + guided (k - 1).

    Free2Guide (Kim et al. 2024, arXiv 2411.17041): path integral control weighs noises by exp(score / temperature) of
    the x0-prediction that they lead to; the noise is drawn by these weights, the best one at temperature 0, its limit.
    `guided`: the steps 1, 2, ... with a choice (5 in paper B's table). `k`: by default as many as the budget pays.
    `eta`: share of fresh noise in a step.

    Raises BudgetTooSmall if the budget does not pay for it, DiffscaleError for k noises at no step.
    """
    if guided == 0 and k is not None and k > 1:
        raise DiffscaleError(f"With guided=0 there is no step at which one of k={k} noises is chosen: leave one out.")
    guided = min(guided, env.steps - 1)
    if k is None:
        k = max(1, (env.nfe_left - env.steps) // max(1, guided) + 1)
    afford(env, env.steps + guided * (k - 1), f"Free2Guide with k={k}, guided={guided}")
    state = yield from env.predict(env.prior(1))
    for step in range(1, env.steps):
        here = k if step <= guided else 1
        state = yield from env.predict(env.step(state.repeat(here), eta=eta))
        if here > 1:
            scores = env.value((yield from env.score(state)))
            # The largest of scores with Gumbel noise is a draw by their softmax.
            chosen = scores - temperature * (-env.uniform(here).log()).log() if temperature else scores
            state = state[[int(chosen.argmax())]]
    yield from env.score(env.step(state, eta=eta))
