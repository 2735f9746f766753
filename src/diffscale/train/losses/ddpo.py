"""DDPO: policy gradient over the steps of denoising."""

from __future__ import annotations

import torch
from torch import Tensor

from diffscale.train.losses.on_policy import Moves, log_prob
from diffscale.train.policy import Policy

CLIP = 1e-4
MOST = 5.0


def ddpo_loss(
    policy: Policy, moves: Moves, advantages: Tensor, clip: float = CLIP, most: float = MOST
) -> tuple[Tensor, dict[str, float]]:
    """mean of max(-A r, -A clip(r, 1 - clip, 1 + clip)), r the ratio of probabilities; scalar, and what to log.

    DDPO-IS (Black et al. 2024, arXiv 2305.13301, section 4.3) with the clipping of PPO. `moves`: S of `rollout`, in any
    order; `advantages`: [S], of `PromptStatistics` by their samples, cut off at `most`.
    """
    advantages = advantages.to(moves.x).clamp(-most, most)
    now = log_prob(policy, moves)
    ratio = (now - moves.log_prob).exp()
    loss = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip)).mean()
    return loss, {
        "loss": float(loss.detach()),
        "clipped": float(((ratio - 1).abs() > clip).double().mean()),
        "kl": float(0.5 * (now.detach() - moves.log_prob).square().mean()),
    }
