"""First-order search: follow the verifier's gradient in the noise."""

import math

from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from diffscale.searches.ascent import ascend
from diffscale.types import Environment, Search, search_traits


@search_traits(anytime=True)
def first_order(env: Environment, iterations: PositiveInt | None = None, rate: PositiveFloat = 0.1) -> Search:
    """Gradient ascent on the noise, through all steps and the decoder. Price: 4 iterations steps.

    Paper A (Ma et al. 2025, arXiv 2501.09732), section 3.2: needs a differentiable verifier. Each iteration turns the
    noise by the angle `rate` (radians) along the part of the gradient that is tangent to its sphere, so that
    its norm is kept (ours). `iterations`: by default as many as the budget pays.

    A verifier without gradient ends it with Unsuited.
    """

    def turn(x: Tensor, g: Tensor) -> Tensor | None:
        g = g - (g @ x) / x.square().sum() * x
        return x * math.cos(rate) + g / g.norm() * x.norm() * math.sin(rate) if g.norm() > 0 else None

    yield from ascend(env, iterations, lambda: turn)
