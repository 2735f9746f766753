"""Which particles go on: resampling schemes, all with expected counts k w but for the greedy ones.

A scheme takes log-weights [parents, children], not normalised, -inf for what may not go on, the number k to keep and
uniform draws, and gives the indices [k] of the kept among the parents * children.
"""

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from diffscale.types import Environment

Resampler = Callable[[Environment, Tensor, int], Tensor]


def normalised(log_weights: Tensor) -> Tensor:
    """Weights [n] that sum to 1 from log-weights of any shape; equal if all are -inf."""
    flat = log_weights.flatten()
    return flat.softmax(0) if flat.isfinite().any() else torch.full_like(flat, 1 / len(flat))


def effective_sample_size(log_weights: Tensor) -> float:
    """(sum w)^2 / sum w^2, between 1 and the number of weights (Kong 1992)."""
    return 1 / float(normalised(log_weights).square().sum())


def multinomial(env: Environment, log_weights: Tensor, k: int) -> Tensor:
    """k independent draws."""
    return _inverse(normalised(log_weights), env.uniform(k).sort().values)


def systematic(env: Environment, log_weights: Tensor, k: int) -> Tensor:
    """One uniform draw shifts k equally spaced points (Kitagawa 1996)."""
    return _inverse(normalised(log_weights), (torch.arange(k) + env.uniform(1)) / k)


def ssp(env: Environment, log_weights: Tensor, k: int) -> Tensor:
    """Srinivasan's sampling process: every count is one of the two integers around k w, negatively associated.

    Gerber, Chopin and Whiteley 2019, section 5.2: two fractions at a time, one of which becomes 0 or 1 with the
    probability that keeps both means.
    """
    expected = normalised(log_weights) * k
    count = expected.floor()
    fraction = (expected - count).tolist()
    extra = [0] * len(fraction)
    draws = env.uniform(len(fraction)).tolist()
    here = 0
    for other in range(1, len(fraction)):
        a, b = fraction[here], fraction[other]
        if a + b < 1:  # one of them takes all and the other is done with 0
            stays = draws[other] * (a + b) < a
            left, done = a + b, None
        else:  # one of them is done with 1 and the other keeps the rest
            stays = draws[other] * (2 - a - b) < 1 - b
            left, done = a + b - 1, (here if stays else other)
            stays = not stays
        if done is not None:
            extra[done] = 1
        here = here if stays else other
        fraction[here] = left
    extra[here] += round(fraction[here]) if not extra[here] else 0
    counts = count.long() + torch.tensor(extra)
    # Rounding of sums of fractions can leave one too many or too few.
    short = k - int(counts.sum())
    counts[int(expected.argmax())] += short
    return torch.repeat_interleave(torch.arange(len(counts)), counts)


def per_parent(env: Environment, log_weights: Tensor, k: int) -> Tensor:
    """The heaviest child of each of the k parents."""
    parents, children = log_weights.shape
    return torch.arange(parents) * children + log_weights.argmax(1)


def top(env: Environment, log_weights: Tensor, k: int) -> Tensor:
    """The k heaviest of all (beam search)."""
    return log_weights.flatten().topk(k).indices


RESAMPLERS: Final[dict[str, Resampler]] = {
    "multinomial": multinomial,
    "systematic": systematic,
    "ssp": ssp,
    "per_parent": per_parent,
    "top": top,
}


def _inverse(weights: Tensor, points: Tensor) -> Tensor:
    """Where the cumulated weights pass `points`, rising in [0, 1)."""
    return torch.searchsorted(weights.cumsum(0), points).clamp(max=len(weights) - 1)
