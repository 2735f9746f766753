"""Standard fine-tuning, step by step."""

from __future__ import annotations

from torch import Tensor

from diffscale.train.losses.sft import sft_loss
from diffscale.train.methods.method import Method

Gathered = tuple[Tensor, Tensor]


class Sft(Method):
    """Each pass on a batch of the data."""

    def gather(self, number: int) -> Gathered:
        """Latents [B, ...], and keys [B]."""
        latents = self.stage.materials.latents(self.stage.batch(number))
        return latents[:, 0], self.stage.keys(number)

    def loss(self, gathered: Gathered) -> tuple[Tensor, dict[str, float]]:
        """See `sft_loss`."""
        latents, keys = gathered
        return sft_loss(self.stage.policy, latents, self.stage.rows, keys)
