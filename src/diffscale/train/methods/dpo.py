"""Diffusion-DPO: learn from pairs of pictures of which people preferred one."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor
from torch.nn import functional as F

from diffscale.engine import noise
from diffscale.train.configs import DpoConfig
from diffscale.train.methods.method import Method
from diffscale.train.policy import Policy

Reference = Callable[[], AbstractContextManager[None]]
"""Has the network be what it is compared with until the block ends, see `Policy.reference`."""


def dpo_loss(errors: tuple[Tensor, Tensor], before: tuple[Tensor, Tensor], beta: float) -> Tensor:
    """-log sigmoid(-beta / 2 ((mw - rw) - (ml - rl))), mean over pairs.

    Wallace et al. 2024 (arXiv 2311.12908, equation 14). `errors`, `before`: squared errors [B] of the trained and of
    the frozen network, on the chosen picture and on the other one, each the mean over elements.
    """
    (won, lost), (won_before, lost_before) = errors, before
    return -F.logsigmoid(-beta / 2 * ((won - won_before) - (lost - lost_before))).mean()


def diffusion_dpo_loss(
    policy: Policy,
    chosen: Tensor,
    other: Tensor,
    rows: Tensor,
    keys: Tensor,
    beta: float,
    reference: Reference | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """`dpo_loss` of preferred and other pictures, clean latents [B, ...] each; scalar, and what to log.

    As in the authors' script the two pictures of a pair share time and noise. `rows` int64 [B]: their prompts; all
    draws are functions of `keys` int64 [B]. `reference`: by default the network as it was before training.
    """
    time = policy.times.draw(noise.fold_rows(keys, "time")).repeat(2)
    eps = policy.prior(noise.fold_rows(keys, "noise")).to(chosen)
    x0, eps, both = torch.cat([chosen, other]), torch.cat([eps, eps]), rows.repeat(2)
    x, target = policy.times.noised(x0, eps, time), policy.times.target(x0, eps, time)
    won, lost = policy.errors(x, time, both, target).chunk(2)
    with (reference or policy.reference)():
        won_before, lost_before = policy.errors(x, time, both, target).chunk(2)
    loss = dpo_loss((won, lost), (won_before, lost_before), beta)
    better = (won - won_before) < (lost - lost_before)
    return loss, {
        "loss": float(loss.detach()),
        "accuracy": float(better.double().mean()),
        "error": float(won.detach().mean()),
    }


class Dpo(Method):
    """Each pass on a batch of preference pairs."""

    settings: DpoConfig

    def gather(self, number: int) -> tuple[Tensor, Tensor, Tensor]:
        """Latents [B, ...] of the chosen pictures and of the others, and keys [B]."""
        chosen, other = self.context.data.latents(self.context.use_batch(number)).unbind(1)
        return chosen, other, self.context.keys(number)

    def loss(self, gathered: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, dict[str, float]]:
        chosen, other, keys = gathered
        return diffusion_dpo_loss(self.policy, chosen, other, self.context.rows, keys, self.settings.beta)
