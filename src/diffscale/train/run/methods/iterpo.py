"""Reward feedback learning of IterComp, step by step."""

from __future__ import annotations

from torch import Tensor

from diffscale.errors import DiffscaleError
from diffscale.train.iterpo import iterpo_loss
from diffscale.train.run.methods.stage import Method, Stage

Gathered = tuple[Tensor, list[str]]


class Iterpo(Method):
    """Each pass follows the rewards' gradients on a batch of prompts."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage)
        if any(reward.weight != 1 for reward in stage.rewards):
            raise DiffscaleError("iterpo adds up its rewards as they are: leave their weights out.")

    def gather(self, number: int) -> Gathered:
        """Keys [B], and the captions that rewards are told; the policy is told the batch."""
        captions = self.stage.batch(number).captions
        return self.stage.keys(number), captions

    def loss(self, gathered: Gathered) -> tuple[Tensor, dict[str, float]]:
        """See `iterpo_loss`."""
        keys, captions = gathered
        return iterpo_loss(self.stage.policy, self.stage.rewards, self.stage.rows, keys, captions=captions)
