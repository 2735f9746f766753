"""Feynman-Kac steering: particles that are resampled on the way."""

from typing import Literal

from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor

from diffscale._util.errors import DiffscaleError
from diffscale.searches.budget import afford
from diffscale.searches.particles import Potential, steer
from diffscale.searches.resampling import RESAMPLERS
from diffscale.types import Environment, Search, Share


def fk(
    env: Environment,
    k: PositiveInt | None = None,
    strength: NonNegativeFloat = 2.0,
    units: Literal["std", "raw"] = "std",
    potential: Potential = "max",
    interval: PositiveInt | None = None,
    resampler: Literal["systematic", "ssp", "multinomial"] = "systematic",
    ess: Share = 0.5,
    eta: Share | None = 1.0,
) -> Search:
    """Sequential Monte Carlo on the scores of x0-predictions. Price: k steps.

    FK steering (Singhal et al. 2025, arXiv 2501.06848, section 4, algorithm 1). `k`: particles, by default as many as
    the budget pays (paper: 4). `strength`: the paper's lambda; in `raw` units of the verifier, as in the paper, or in
    standard deviations of the particles' values at that step (`std`, ours: verifiers differ by orders of magnitude).
    `potential`: of the max, difference or sum of a particle's scores, or the current one. `interval`: steps between
    scorings, by default a fifth of all. `resampler`: when the effective sample size is below `ess` k. `eta`: share of
    fresh noise in each step, see `formulas.denoise`; null for the solver's own noise.

    Raises BudgetTooSmall if the budget does not pay for it, DiffscaleError for an `interval` that scores nothing.
    """
    if interval is not None and interval >= env.steps > 1:
        raise DiffscaleError(
            f"Nothing is scored on the way with interval={interval}, as a sample has {env.steps} steps: give less."
        )
    k = env.nfe_left // env.steps if k is None else k
    interval = max(1, env.steps // 5) if interval is None else interval
    afford(env, k * env.steps, f"FK steering with k={k}")

    def scale(step: int, values: Tensor) -> float:
        finite = values[values.isfinite()]
        spread = float(finite.std()) if units == "std" and len(finite) > 1 else 0.0
        return strength / spread if spread else strength

    yield from steer(
        env, k, children=1, potential=potential, strength=scale, resample=RESAMPLERS[resampler], threshold=ess,
        interval=interval, eta=eta,
    )  # fmt: skip
