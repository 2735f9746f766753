"""Guidance by the gradient of the score of the x0-prediction, through one evaluation of the network."""

from typing import Literal

import torch
from pydantic import PositiveInt
from torch import Tensor

from diffscale.searches.budget import afford
from diffscale.types import Environment, PositiveShare, Search


def dps(
    env: Environment,
    n: PositiveInt | None = None,
    strength: PositiveShare = 0.1,
    guidance: Literal["shift", "tilt"] = "shift",
    eta: PositiveShare = 1.0,
) -> Search:
    """Every step of n samples follows the gradient of its x0-prediction's score. Price: n (3 (steps - 1) + 1).

    Diffusion posterior sampling (Chung et al. 2022, arXiv 2209.14687): with g the gradient of the score of the
    x0-prediction with respect to x, `shift` moves the mean of a stochastic step along g. Its length is `strength`
    standard deviations of the step for every number of the latents (ours: verifiers differ by orders of magnitude,
    where the paper divides by the residual of its measurement). `tilt` leaves the mean and turns the step's noise
    towards g at the norm of noise, so that latents stay typical: strength^2 of its squared length is along g, as in
    guidance on a sphere (Yang et al. 2024, arXiv 2402.03201). It is the idea of NTRK (2026, arXiv 2606.18066), whose
    whitening of g is left out. `n`: by default as many as the budget pays. `eta`: share of fresh noise in a step.

    Raises BudgetTooSmall if the budget does not pay for it. A verifier without gradient ends it with Unsuited.
    """
    each = 3 * (env.steps - 1) + 1
    n = max(1, env.nfe_left // each) if n is None else n
    afford(env, n * each, f"Guidance of n={n}")
    state = env.prior(n)
    for _ in range(env.steps - 1):
        state, _, gradient = yield from env.predict_gradient(state)
        state = env.step(state, guided(env.noise(state), gradient, strength, guidance), eta)
    yield from env.evaluate(state)


def guided(noise: Tensor, gradient: Tensor, strength: float, guidance: str) -> Tensor:
    """Noise [B, ...] with a share along the gradients [B, ...]; as it is for rows without a finite gradient above 0."""
    z, g = noise.flatten(1).cpu().double(), gradient.flatten(1).cpu().double()
    usable = g.isfinite().all(1, keepdim=True) & (g != 0).any(1, keepdim=True)
    g = torch.where(usable, g, 1.0)
    g = g / g.norm(dim=1, keepdim=True)
    across = z if guidance == "shift" else (1 - strength**2) ** 0.5 * (z - (z * g).sum(1, keepdim=True) * g)
    return torch.where(usable, across + strength * z.shape[1] ** 0.5 * g, z).view(noise.shape).to(noise)
