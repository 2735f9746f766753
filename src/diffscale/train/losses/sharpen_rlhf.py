"""RLHF Diffusion-Sharpening: prefer the best of several short trajectories from a sample of one's own to the worst."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from diffscale._util.errors import DiffscaleError
from diffscale.samplers.diffusers import DiffusersSampler
from diffscale.train.policy import Policy
from diffscale.train.selection import Chosen
from diffscale.train.visited import Form, Steps, steps_of

BETA = 2500.0
"""Of the paper's runs on SDXL."""


@torch.no_grad()
def own_samples(sampler: DiffusersSampler, unit: Tensor, keys: Tensor, rows: Tensor) -> Tensor:
    """Clean latents [B, ...] that the model makes itself of `unit` noise [B, ...], for the prompts `rows` int64 [B].

    `keys` int64 [B]: of noise on the way, if any. `sampler`: the policy's own, which is unguided, or another of the
    same pipeline and prompts with guidance.
    """
    return sampler.run(sampler.started(unit, keys, rows)).x


def sharpen_rlhf_loss(
    policy: Policy, chosen: Chosen, beta: float = BETA, form: Form = "consistent"
) -> tuple[Tensor, dict[str, float]]:
    """-log sigmoid(beta ((ref_w - ref_l) - (mod_w - mod_l)) - (R_w - R_l)); scalar, mean over rows, and what to log.

    Diffusion-Sharpening (Tian et al. 2025, arXiv 2502.12146, RLHF). `chosen`: of `choose` from `own_samples`; w is the
    best trajectory and l the worst, mod and ref are the squared errors of the trained and of the frozen network, means
    over the trajectory's steps, and R the rewards. `published` is the literal form of the authors' code: the target of
    the first step at every step, the reference at the first step only, and the reward gap outside the logarithm,
    -log sigmoid(...) + (R_w - R_l), where it has no gradient. In neither goes a gradient through the trajectories.

    Raises DiffscaleError if a row has but one trajectory.
    """
    if bool((chosen.count < 2).any()):
        raise DiffscaleError("Preferring needs two trajectories of a row: give n >= 2, and a search that ends in 2.")
    won, lost = (steps_of(which, chosen.rows) for which in (chosen.best, chosen.worst))
    mod_w, mod_l = _errors(policy, won, form), _errors(policy, lost, form)
    with policy.reference():
        seen = (won, lost) if form == "consistent" else (won.first(), lost.first())
        ref_w, ref_l = (_errors(policy, steps, form) for steps in seen)
    gap = (chosen.reward - chosen.lowest).to(mod_w)
    inside = beta * ((ref_w - ref_l) - (mod_w - mod_l))
    each = -F.logsigmoid(inside - gap) if form == "consistent" else -F.logsigmoid(inside) + gap
    loss = each.mean()
    return loss, {
        "loss": float(loss.detach()),
        "reward": float(chosen.reward.mean()),
        "reward_mean": float(chosen.mean.mean()),
        "reward_gap": float(gap.mean()),
        "accuracy": float((inside > 0).double().mean()),
    }


def _errors(policy: Policy, steps: Steps, form: Form) -> Tensor:
    """Squared errors [B], means over each trajectory's steps."""
    return steps.mean(policy.errors(steps.x, steps.time, steps.rows, steps.target(policy.times, form)))
