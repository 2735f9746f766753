"""Random search: best of N independent noises."""

from pydantic import PositiveInt

from diffscale.types import Environment, Search, search_traits


@search_traits(anytime=True, independent=True)
def random(env: Environment, n: PositiveInt | None = None) -> Search:
    """Best of n independent noises, by default as many as the budget pays. Price: n * steps.

    Paper A (Ma et al. 2025, arXiv 2501.09732), section 3.2. Finished candidates are handed over in
    chunks, so memory does not grow with n.
    """
    affordable = env.nfe_left // env.steps
    left = affordable if n is None else min(n, affordable)
    while left > 0:
        now = min(left, env.chunk)
        yield from env.evaluate(env.prior(now))
        left -= now
