"""SVDD: at every step the best of many children of each sample goes on."""

from pydantic import PositiveInt

from diffscale.searches.budget import afford
from diffscale.searches.particles import steer
from diffscale.searches.resampling import per_parent
from diffscale.types import Environment, Search, Share


def svdd(env: Environment, b: PositiveInt = 1, m: PositiveInt | None = None, eta: Share | None = 1.0) -> Search:
    """Of m noised children of each of b samples the best x0-prediction goes on. Price: b + b m (steps - 1).

    Soft value-based decoding (Li et al. 2024, arXiv 2408.08252, algorithm 1 with temperature 0, as its authors run it):
    the x0-prediction's score stands for the value. `m`: by default as many as the budget pays. `eta`: share of fresh
    noise in each step, see `formulas.denoise`; null for the solver's own noise.

    Raises BudgetTooSmall if the budget does not pay for it.
    """
    if m is None:
        m = max(1, (env.nfe_left - b) // (b * max(1, env.steps - 1)))
    afford(env, b + b * m * (env.steps - 1), f"SVDD with b={b}, m={m}")
    yield from steer(
        env, [b] * env.steps, at=range(1, env.steps), children=m, potential="current", strength=lambda *_: 1.0,
        resample=per_parent, threshold=1, eta=eta,
    )  # fmt: skip
