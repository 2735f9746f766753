"""The funnel: many particles while nothing is settled, few when all is, for the same NFE."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from pydantic import NonNegativeFloat, PositiveInt

from diffscale.searches.particles import Potential, Units, affordable, in_units, scored_steps, steer
from diffscale.searches.resampling import RESAMPLERS
from diffscale.types import Environment, PositiveShare, Search, Share


def funnel(
    env: Environment,
    k: PositiveInt | None = None,
    narrow: PositiveShare = 0.25,
    strength: NonNegativeFloat = 2.0,
    temperature: Literal["adaptive", "constant"] = "adaptive",
    units: Units = "std",
    potential: Potential = "max",
    interval: PositiveInt | None = None,
    resampler: Literal["systematic", "ssp", "multinomial"] = "systematic",
    ess: Share = 0.5,
    eta: Share | None = 1.0,
) -> Search:
    """Sequential Monte Carlo whose particles become fewer, k on average. Price: k steps, or a little less.

    Funnel schedule and adaptive temperature (Su et al. 2025, arXiv 2508.12361): an early sample can still become
    anything and is hard to judge, a late one is settled and judged well, so many begin, few are finished, and early
    scores weigh less. `narrow`: the number at the end as a share of that at the beginning; between, it falls at each
    scoring, linearly in the steps. `temperature`: `adaptive` multiplies the `strength` by 1 - the noise level. Both
    formulas are ours, as we had the paper's abstract alone. `k`, `strength`, `units`, `potential`, `interval`,
    `resampler`, `ess` and `eta`: as of `fk`.

    Raises BudgetTooSmall if the budget does not pay for it, DiffscaleError for an `interval` that scores nothing.
    """
    at = scored_steps(env, interval)
    paid = sum(affordable(env, k, "The funnel"))
    ends = [0, *(step + 1 for step in at if step + 1 < env.steps), env.steps]
    lengths = [end - start for start, end in pairwise(ends)]
    sizes = narrowing(lengths, env.nfe_left if k is None else paid, narrow)
    counts = [size for size, length in zip(sizes, lengths, strict=True) for _ in range(length)]
    # What goes on from a scoring is predicted at the step after it.
    counts = [*counts[1:], counts[-1]]
    yield from steer(
        env, counts, at=at, potential=potential, resample=RESAMPLERS[resampler], threshold=ess, eta=eta,
        strength=in_units(units, lambda step: strength * (1 - env.levels[step] * (temperature == "adaptive"))),
    )  # fmt: skip


def narrowing(lengths: Sequence[int], nfe: int, narrow: float) -> list[int]:
    """How many particles each stretch of `lengths` steps has, about 1 to `narrow` and never more, for `nfe` at most.

    One each is paid for first, so `nfe` is sum(lengths) or more; what rounding leaves goes where most is missing.
    """
    done = [sum(lengths[:i]) for i in range(len(lengths))]
    share = [1 - (1 - narrow) * each / max(1, done[-1]) for each in done]
    unit = (nfe - sum(lengths)) / sum(length * each for length, each in zip(lengths, share, strict=True))
    sizes = [1 + int(unit * each) for each in share]
    while True:
        left = nfe - sum(length * size for length, size in zip(lengths, sizes, strict=True))
        fits = [i for i, length in enumerate(lengths) if length <= left and (i == 0 or sizes[i] < sizes[i - 1])]
        if not fits:
            return sizes
        sizes[min(fits, key=lambda i: sizes[i] / share[i])] += 1
