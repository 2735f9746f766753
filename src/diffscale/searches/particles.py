"""The engine of particle methods: branch, predict, weigh by the scores of x0-predictions, resample.

A method is a setting of it: FK steering (one child, product of potentials, resampling when the weights degenerate),
SVDD (many children, the best of each parent goes on at once), and others by other schedules, counts and resamplers.
"""

import math
from collections.abc import Callable, Container, Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from diffscale._util.errors import DiffscaleError
from diffscale.searches.budget import afford
from diffscale.searches.resampling import Resampler, effective_sample_size
from diffscale.types import Environment, State

Potential = Literal["max", "difference", "sum", "current", "tempered"]
Units = Literal["std", "raw"]


@dataclass(frozen=True)
class Cloud:
    """k particles: their states, log-weights float64 [k], and the log of the normalising constant so far.

    Per particle, along its ancestry: `last`, `highest`, `total` of its scores, and `spent`, the sum of its
    log-potentials, which the last potential takes back.
    """

    state: State
    log_weight: Tensor
    last: Tensor
    highest: Tensor
    total: Tensor
    spent: Tensor
    log_z: float = 0.0

    def __getitem__(self, index: Tensor) -> "Cloud":
        own = ("state", "log_weight", "last", "highest", "total", "spent")
        return replace(self, **{name: getattr(self, name)[index] for name in own})

    def repeat(self, n: int, state: State) -> "Cloud":
        """n children a particle, which have `state` [k n]."""
        own = ("log_weight", "last", "highest", "total", "spent")
        return replace(self, state=state, **{name: getattr(self, name).repeat_interleave(n) for name in own})


def scored_steps(env: Environment, interval: int | None) -> range:
    """The steps whose x0-predictions are scored: every `interval`, by default every fifth of all.

    Raises DiffscaleError for an `interval` that scores nothing.
    """
    if interval is not None and interval >= env.steps > 1:
        raise DiffscaleError(
            f"Nothing is scored on the way with interval={interval}, as a sample has {env.steps} steps: give less."
        )
    every = max(1, env.steps // 5) if interval is None else interval
    return range(every, env.steps, every)


def affordable(env: Environment, k: int | None, what: str) -> list[int]:
    """k particles at each step, by default as many as the budget pays; raises BudgetTooSmall, naming `what`."""
    k = max(1, env.nfe_left // env.steps) if k is None else k
    afford(env, k * env.steps, f"{what} with k={k}")
    return [k] * env.steps


def unit_of(units: Units, values: Tensor) -> float:
    """What strengths are measured in: 1 (`raw`), or the standard deviation of the finite `values`, if they differ."""
    finite = values[values.isfinite()]
    return (float(finite.std()) if units == "std" and len(finite) > 1 else 0.0) or 1.0


def in_units(units: Units, strength: Callable[[int], float]) -> Callable[[int, Tensor], float]:
    """The strength at a step for some values: as it is (`raw`), or over their standard deviation (`std`)."""
    return lambda step, values: strength(step) / unit_of(units, values)


def steer(
    env: Environment,
    counts: Sequence[int],
    *,
    at: Container[int],
    potential: Potential,
    strength: Callable[[int, Tensor], float],
    resample: Resampler,
    threshold: float,
    eta: float | None,
    children: int = 1,
) -> Generator[Any, Any, Cloud]:
    """Run particles to the end and return the finished cloud; `counts`: how many go on from each of the steps.

    At the steps in `at` a particle has `children`, else one, and their x0-predictions are scored; so it costs
    counts[0] + sum of counts[s - 1] (`children` or 1) over s = 1 ... steps - 1. With r the scores along a particle's
    ancestry, its log-potential is strength(step, v) v, where v is max r, r_now - r_before, sum r or r_now; where it is
    `tempered` that of r_now is divided by all potentials before. The cloud is resampled when its effective sample size
    falls below `threshold` (a share of its size; 1 for always), and always when not all go on. The last potential is
    exp(strength r) over the product of all before, so that the weighted cloud is a sample of p(x) exp(strength r(x)),
    and the normalising constant is unbiased, if the strength does not depend on the scores (Singhal et al. 2025, arXiv
    2501.06848, section 4).
    """
    first = yield from env.predict(env.prior(counts[0]))
    zero = torch.zeros(counts[0], dtype=torch.float64)
    cloud = Cloud(first, zero, zero, zero - math.inf, zero, zero)
    for step in range(1, env.steps):
        parents, many = len(cloud.state), children if step in at else 1
        state = env.step(env.branch(cloud.state, many), eta=eta)
        cloud = cloud.repeat(many, (yield from env.predict(state)))
        if step in at:
            cloud = _weighed(cloud, env.value((yield from env.score(cloud.state))), potential, strength, step)
            fewer = len(cloud.state) != counts[step]
            if fewer or threshold >= 1 or effective_sample_size(cloud.log_weight) < threshold * len(cloud.state):
                cloud = _resampled(env, cloud, parents, counts[step], resample)
    state = env.step(cloud.state, eta=eta)
    scores = env.value((yield from env.score(state)))
    last = torch.where(scores.isfinite(), strength(env.steps, scores) * scores - cloud.spent, -math.inf)
    weight = cloud.log_weight + last
    return replace(cloud, state=state, log_weight=weight, last=scores, log_z=cloud.log_z + _log_mean(weight))


def _weighed(
    cloud: Cloud, scores: Tensor, potential: Potential, strength: Callable[[int, Tensor], float], step: int
) -> Cloud:
    usable = scores.isfinite()
    highest = torch.maximum(cloud.highest, scores)
    total = torch.where(usable, cloud.total + scores, cloud.total)
    value = {"max": highest, "difference": scores - cloud.last, "sum": total}.get(potential, scores)
    taken_back = cloud.spent if potential == "tempered" else torch.zeros_like(scores)
    log_g = torch.where(usable, strength(step, value) * value - taken_back, 0.0)
    # A dropped candidate has weight 0. If all are dropped they go on as if they had not been scored.
    return replace(
        cloud,
        log_weight=torch.where(usable, cloud.log_weight + log_g, -math.inf),
        last=torch.where(usable, scores, cloud.last),
        highest=highest,
        total=total,
        spent=cloud.spent + log_g,
    )


def _resampled(env: Environment, cloud: Cloud, parents: int, k: int, resample: Resampler) -> Cloud:
    log_z = cloud.log_z + _log_mean(cloud.log_weight)
    kept = cloud[resample(env, cloud.log_weight.view(parents, -1), k)]
    return replace(kept, log_weight=torch.zeros(k, dtype=torch.float64), log_z=log_z)


def _log_mean(log_weight: Tensor) -> float:
    return float(log_weight.logsumexp(0)) - math.log(len(log_weight))
