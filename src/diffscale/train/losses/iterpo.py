"""IterPO: raise differentiable rewards of late x0-predictions; `refining` has its other turn."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from diffscale._util.errors import DiffscaleError
from diffscale.engine import noise
from diffscale.engine.scoring import scored
from diffscale.train.policy import Policy
from diffscale.types import NeedsIntermediateX0, PoolVerifier, SetVerifier, Verifier

MARGIN = 2.0
SCALE = 1e-3
LATE = 0.25


def iterpo_loss(
    policy: Policy,
    verifiers: Sequence[Verifier],
    rows: Tensor,
    keys: Tensor,
    scale: float = SCALE,
    captions: Sequence[str] | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """scale * mean of sum_k relu(2 - r_k) of x0-predictions at a late step; scalar, and what to log.

    Reward feedback learning as IterComp has it (Zhang et al. 2024, arXiv 2410.07171, and its authors' code): sample
    without noise to a random step of the last quarter (30 to 39 of 40), and follow the rewards' gradient through that
    one evaluation and the decoder. `verifiers`: differentiable ones of single pictures, in units in which 2 is high, as
    ImageReward's. `rows` int64 [B]: prompts; all draws are functions of `keys` int64 [B]; the step is that of the first
    key. `captions`: what the verifiers are told of each row, by default its prompt, which may have been left out for
    the network alone.

    Raises DiffscaleError for verifiers without gradient.
    """
    for verifier in verifiers:
        if isinstance(verifier, PoolVerifier | NeedsIntermediateX0 | SetVerifier):
            raise DiffscaleError(f"Verifier {verifier.name!r} gives no gradient: name its members one by one.")
    grid = policy.grid()
    late = max(1, round(LATE * len(grid)))
    last = len(grid) - late + int(float(noise.uniform(noise.fold_rows(keys[:1], "stop"))) * late)
    x = _denoised(policy, rows, keys, grid[: last + 1])
    now = grid[last].repeat(len(rows))
    x0 = policy.times.clean(x, policy.output(x, now, rows), now)
    pictures = policy.decode(x0)
    prompts = [policy.prompts[row] for row in rows.tolist()] if captions is None else list(captions)
    rewards = [scored(verifier, pictures, prompts).to(x0) for verifier in verifiers]
    for verifier, reward in zip(verifiers, rewards, strict=True):
        if not reward.requires_grad:
            raise DiffscaleError(f"Verifier {verifier.name!r} gives no gradient: train with another, or by DDPO.")
    loss = scale * torch.stack([F.relu(MARGIN - reward) for reward in rewards]).sum(0).mean()
    logs = {f"reward_{v.name}": float(r.detach().mean()) for v, r in zip(verifiers, rewards, strict=True)}
    together = torch.stack(rewards).detach().mean(0)
    spread = {"reward": float(together.mean()), "reward_std": float(together.std(correction=0))}
    return loss, {"loss": float(loss.detach()), **logs, **spread}


@torch.no_grad()
def _denoised(policy: Policy, rows: Tensor, keys: Tensor, grid: Tensor) -> Tensor:
    """Latents [B, ...] at the last time of `grid`, from noise at its first."""
    x = policy.prior(noise.fold_rows(keys, "start"))
    for here, there in zip(grid[:-1].tolist(), grid[1:].tolist(), strict=True):
        time, to = (torch.full((len(x),), at, dtype=torch.float64) for at in (here, there))
        x0 = policy.times.clean(x, policy.output(x, time, rows), time)
        x = policy.times.posterior(x, x0, time, to, 0.0)[0]
    return x
