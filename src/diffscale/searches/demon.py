"""Demon: weigh the noises of a step by what they lead to, and take the step with their sum."""

from typing import Literal

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from diffscale.searches.budget import afford
from diffscale.types import Environment, PositiveShare, Search


def demon(
    env: Environment,
    k: PositiveInt | None = None,
    weights: Literal["tanh", "softmax"] = "tanh",
    temperature: PositiveFloat | None = None,
    eta: PositiveShare = 1.0,
) -> Search:
    """Every step is taken with a score-weighted sum of k noises. Price: 1 + (k + 1) (steps - 1).

    Demon (Yeh et al. 2024, arXiv 2410.05760, algorithm 1): z = sqrt(d) normalise(sum_i b_i z_i), with `tanh` weights
    b_i = tanh((R_i - mean R) / temperature) or Boltzmann (`softmax`) weights; R_i is the score of the x0-prediction
    after a step with z_i. `temperature`: by default the standard deviation of R at that step (adaptive). `k`: by
    default as many as the budget pays (paper: 16). `eta`: share of fresh noise in a step.

    Raises BudgetTooSmall if the budget does not pay for it.
    """
    if k is None:
        k = max(1, (env.nfe_left - 1) // max(1, env.steps - 1) - 1)
    afford(env, 1 + (k + 1) * (env.steps - 1), f"Demon with k={k}")
    state = yield from env.predict(env.prior(1))
    for _ in range(env.steps - 1):
        many = state.repeat(k)
        noise = env.noise(many)
        ahead = yield from env.predict(env.step(many, noise, eta))
        scores = env.value((yield from env.score(ahead)))
        share = _weights(scores, weights, temperature).to(noise)
        mixed = (share.view(k, *[1] * (noise.ndim - 1)) * noise).sum(0, keepdim=True)
        norm = mixed.norm()
        mixed = mixed / norm * mixed.numel() ** 0.5 if norm > 0 else noise[:1]
        state = yield from env.predict(env.step(state, mixed, eta))
    yield from env.score(env.step(state, eta=eta))


def _weights(scores: Tensor, kind: str, temperature: float | None) -> Tensor:
    usable = scores.isfinite()
    share = torch.zeros_like(scores)
    if not usable.any():
        return share
    centred = scores[usable] - scores[usable].mean()
    scale = temperature or (float(centred.std()) if len(centred) > 1 else 0.0) or 1.0
    share[usable] = (centred / scale).tanh() if kind == "tanh" else (centred / scale).softmax(0)
    return share
