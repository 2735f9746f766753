"""The engine of particle methods: branch, predict, weigh by the scores of x0-predictions, resample.

A method is a setting of it: FK steering (one child, product of potentials, resampling when the weights degenerate),
SVDD (many children, the best of each parent goes on at once), and others by other schedules and resamplers.
"""

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from diffscale.searches.resampling import Resampler, effective_sample_size
from diffscale.types import Environment, State

Potential = Literal["max", "difference", "sum", "current"]


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


def steer(
    env: Environment,
    k: int,
    *,
    children: int,
    potential: Potential,
    strength: Callable[[int, Tensor], float],
    resample: Resampler,
    threshold: float,
    interval: int,
    eta: float | None,
) -> Generator[Any, Any, Cloud]:
    """Run k particles to the end; costs k + k children (steps - 1) NFE and returns the finished cloud.

    Every `interval` steps the x0-predictions are scored. With r the scores along a particle's ancestry, its
    log-potential is strength(step, v) v, where v is max r, r_now - r_before, sum r or r_now. The cloud is resampled
    when its effective sample size falls below `threshold` (a share of its size; 1 for always), and always when there
    are more children than parents. The last potential is exp(strength r) over the product of all before, so that the
    weighted cloud is a sample of p(x) exp(strength r(x)), and the normalising constant is unbiased, if the strength
    does not depend on the scores (Singhal et al. 2025, arXiv 2501.06848, section 4).
    """
    first = yield from env.predict(env.prior(k))
    zero = torch.zeros(k, dtype=torch.float64)
    cloud = Cloud(first, zero, zero, zero - math.inf, zero, zero)
    for step in range(1, env.steps):
        state = env.step(env.branch(cloud.state, children), eta=eta)
        cloud = cloud.repeat(children, (yield from env.predict(state)))
        if step % interval == 0:
            cloud = _weighed(cloud, env.value((yield from env.score(cloud.state))), potential, strength, step)
            if children > 1 or effective_sample_size(cloud.log_weight) < threshold * len(cloud.state) or threshold >= 1:
                cloud = _resampled(env, cloud, k, resample)
        elif children > 1:
            cloud = _resampled(env, cloud, k, resample)
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
    value = {"max": highest, "difference": scores - cloud.last, "sum": total, "current": scores}[potential]
    log_g = torch.where(usable, strength(step, value) * value, 0.0)
    # A dropped candidate has weight 0. If all are dropped they go on as if they had not been scored.
    return replace(
        cloud,
        log_weight=torch.where(usable, cloud.log_weight + log_g, -math.inf),
        last=torch.where(usable, scores, cloud.last),
        highest=highest,
        total=total,
        spent=cloud.spent + log_g,
    )


def _resampled(env: Environment, cloud: Cloud, k: int, resample: Resampler) -> Cloud:
    log_z = cloud.log_z + _log_mean(cloud.log_weight)
    kept = cloud[resample(env, cloud.log_weight.view(k, -1), k)]
    return replace(kept, log_weight=torch.zeros(k, dtype=torch.float64), log_z=log_z)


def _log_mean(log_weight: Tensor) -> float:
    return float(log_weight.logsumexp(0)) - math.log(len(log_weight))
