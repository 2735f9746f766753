"""First-order search: follow the verifier's gradient in the noise."""

import math

from pydantic import PositiveFloat, PositiveInt

from diffscale.types import Environment, Search, search_traits


@search_traits(anytime=True)
def first_order(env: Environment, iterations: PositiveInt | None = None, rate: PositiveFloat = 0.1) -> Search:
    """Gradient ascent on the noise, through all steps and the decoder. Price: 4 iterations steps.

    Paper A (Ma et al. 2025, arXiv 2501.09732), section 3.2: needs a differentiable verifier. Each iteration turns the
    noise by the angle `rate` (radians) along the part of the gradient that is tangent to its sphere, so that
    its norm is kept (ours). `iterations`: by default as many as the budget pays.

    A verifier without gradient ends it with Unsuited.
    """
    state = env.prior(1)
    while iterations != 0:
        _, gradient = yield from env.gradient(state)
        x, g = state.x.cpu().double(), gradient.cpu().double()
        g = g - (g * x).sum() / x.square().sum() * x
        if not g.norm() > 0:
            state = env.prior(1)  # a plateau, or a dropped candidate: no way up from here
        else:
            turned = x * math.cos(rate) + g / g.norm() * x.norm() * math.sin(rate)
            state = env.start(turned.to(state.x))
        iterations = None if iterations is None else iterations - 1
