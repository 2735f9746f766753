"""Diffusion-DPO, step by step."""

from __future__ import annotations

from torch import Tensor

from diffscale.train.losses.dpo import BETA, diffusion_dpo_loss
from diffscale.train.methods.method import Method

Gathered = tuple[Tensor, Tensor, Tensor]


class Dpo(Method):
    """Each pass on a batch of preference pairs."""

    def gather(self, number: int) -> Gathered:
        """Latents [B, ...] of the chosen pictures and of the others, and keys [B]."""
        chosen, other = self.stage.materials.latents(self.stage.batch(number)).unbind(1)
        return chosen, other, self.stage.keys(number)

    def loss(self, gathered: Gathered) -> tuple[Tensor, dict[str, float]]:
        """See `diffusion_dpo_loss`."""
        chosen, other, keys = gathered
        beta = self.stage.settings.beta or BETA
        return diffusion_dpo_loss(self.stage.policy, chosen, other, self.stage.rows, keys, beta)
