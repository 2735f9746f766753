"""Separable CMA-ES of the noise in a random subspace."""

import math
from functools import partial
from typing import Any

import torch
from pydantic import PositiveInt
from torch import Tensor

from diffscale._util.errors import DiffscaleError, explained
from diffscale.searches.ask_tell import ask_tell
from diffscale.searches.subspaces import random_subspace
from diffscale.types import Environment, Search, search_traits


@search_traits(anytime=True)
def cma(env: Environment, dimensions: PositiveInt = 64, n: PositiveInt | None = None) -> Search:
    """Evolution strategy with adapted variances, in a random subspace of the noise. Price: candidates * steps.

    Separable CMA-ES (Ros and Hansen 2008, doi 10.1007/978-3-540-87700-4_30), whose covariance is diagonal, by the
    package cmaes (Nomura and Shibata 2024, arXiv 2402.01373). It begins with the law of noise itself, and the first
    plain sample is the first candidate. `dimensions` of the subspace; `n`: candidates of a generation, by default
    4 + 3 log(dimensions), rounded down. Needs `pip install 'diffscale[cma]'`.

    Raises DiffscaleError if cmaes is not installed, and for a single dimension or candidate, which it cannot learn of.
    """
    with explained("The search cma needs cmaes: pip install 'diffscale[cma]'.", ImportError):
        import cmaes  # noqa: F401
    first = env.prior(1)
    dimensions = min(dimensions, first.x[0].numel())
    n = 4 + int(3 * math.log(dimensions)) if n is None else n
    if min(dimensions, n) < 2:
        raise DiffscaleError(
            f"The search cma learns in 2 dimensions or more, from 2 candidates or more, not in {dimensions} from n={n}."
        )
    yield from ask_tell(env, first, random_subspace(env, first, dimensions), partial(Separable, env, n), n)


class Separable:
    """The optimiser: see `cma`. `first` [1, d] is the first point."""

    def __init__(self, env: Environment, n: int, first: Tensor) -> None:
        import cmaes

        self.env, self.first = env, first
        mean, seed = torch.zeros(first.shape[1], dtype=torch.float64).numpy(), int(env.uniform(1) * 2**31)
        self.strategy: Any = cmaes.SepCMA(mean, 1.0, seed=seed, population_size=n)

    def ask(self, n: int) -> Tensor:
        """Draws from the law as it is; the very first one is the first point."""
        drawn = torch.stack([torch.from_numpy(self.strategy.ask()) for _ in range(n)])
        if not self.strategy.generation:
            drawn[0] = self.first[0]
        return drawn

    def tell(self, points: Tensor, scores: Tensor) -> None:
        """Nothing is learned of a last generation that is not whole, and of one of which half was dropped."""
        losses = -self.env.value(scores)
        whole = len(points) == self.strategy.population_size
        if whole and 2 * int(losses.isfinite().sum()) >= len(points):
            self.strategy.tell(list(zip(points.numpy(), losses.tolist(), strict=True)))
