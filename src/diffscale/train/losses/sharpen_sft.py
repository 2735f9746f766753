"""SFT Diffusion-Sharpening: fine-tuning on the best of several short trajectories from each picture of a data set."""

from __future__ import annotations

from torch import Tensor

from diffscale.train.policy import Policy
from diffscale.train.selection import Chosen
from diffscale.train.visited import Form, steps_of


def sharpen_sft_loss(policy: Policy, chosen: Chosen, form: Form = "consistent") -> tuple[Tensor, dict[str, float]]:
    """Mean over the best trajectory's steps of |network(x_t, t, c) - target|^2; scalar, and what to log.

    Diffusion-Sharpening (Tian et al. 2025, arXiv 2502.12146, SFT). `chosen`: of `choose` from the data's latents.
    `form`: of the target, see `Steps.target`. The trajectory is a choice of data: no gradient goes through its making.
    """
    steps = steps_of(chosen.best, chosen.rows)
    errors = policy.errors(steps.x, steps.time, steps.rows, steps.target(policy.times, form))
    loss = steps.mean(errors).mean()
    return loss, {
        "loss": float(loss.detach()),
        "reward": float(chosen.reward.mean()),
        "reward_mean": float(chosen.mean.mean()),
    }
