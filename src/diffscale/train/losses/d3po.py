"""D3PO: DPO over the steps of denoising, on pairs of samples from the same noise."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from diffscale.train.losses.on_policy import Moves, log_prob
from diffscale.train.policy import Policy

BETA = 0.1
CLIP = 0.1


def preferences(first: Tensor, second: Tensor) -> Tensor:
    """+1 where the first sample has the higher reward, -1 where the second has, 0 where they are equal: [B]."""
    return (first - second).sign()


def d3po_loss(
    policy: Policy, first: Moves, second: Moves, preferred: Tensor, beta: float = BETA, clip: float = CLIP
) -> tuple[Tensor, dict[str, float]]:
    """-log sigmoid(beta p (log r_1 - log r_2)) at each step, r against the reference, clipped; scalar, what to log.

    D3PO (Yang et al. 2024, arXiv 2311.13231), as its authors' code has it. `first`, `second`: S moves each
    at the same times, of two rollouts of the same prompts and starting noise; `preferred`: p, [S], of `preferences` by
    their samples. r is clipped to 1 - clip ... 1 + clip, and has no gradient beyond.
    """
    won = []
    for moves in (first, second):
        now = log_prob(policy, moves)
        with policy.reference():
            before = log_prob(policy, moves)
        won.append((now - before).exp().clamp(1 - clip, 1 + clip).log())
    inside = beta * preferred.to(won[0]) * (won[0] - won[1])
    loss = -F.logsigmoid(inside).mean()
    return loss, {"loss": float(loss.detach()), "accuracy": float((inside > 0).double().mean())}
