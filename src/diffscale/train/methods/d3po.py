"""D3PO, step by step."""

from __future__ import annotations

import torch
from torch import Tensor

from diffscale.train.losses.d3po import BETA, d3po_loss, preferences
from diffscale.train.losses.on_policy import rollout
from diffscale.train.methods.rounds import Rounds

Gathered = tuple[dict[str, Tensor], Tensor, bool]


class D3po(Rounds):
    """Pairs of samples from the same noise; the reward says which is preferred."""

    def sampled(self, number: int) -> dict[str, Tensor]:
        """Two rollouts of batch `number`, and the rewards [B] of each."""
        batch, held = self.stage.batch(number), dict[str, Tensor]()
        start = self.stage.keys(number, "start")
        for name in ("first", "second"):
            made = rollout(self.stage.policy, self.stage.rows, self.stage.keys(number, name), start)
            held |= self.held(made.moves, f"{name}.")
            held[f"{name}.reward"] = self.stage.reward_scores(made.x0, batch.captions)
        return held

    def settled(self, held: dict[str, Tensor], captions: list[str]) -> dict[str, Tensor]:
        """Preferences."""
        return {"preferred": preferences(held["first.reward"], held["second.reward"])}

    def loss(self, gathered: Gathered) -> tuple[Tensor, dict[str, float]]:
        """See `d3po_loss`."""
        held, move, fresh = gathered
        first, second = self.at(held, move, "first."), self.at(held, move, "second.")
        beta = self.stage.settings.beta or BETA
        loss, logs = d3po_loss(self.stage.policy, first, second, held["preferred"], beta)
        if fresh:
            rewards = torch.cat([self._held["first.reward"], self._held["second.reward"]])
            logs |= {"reward": float(rewards.mean()), "reward_std": float(rewards.std(correction=0))}
        return loss, logs
