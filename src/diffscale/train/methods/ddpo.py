"""DDPO, step by step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from diffscale.train.losses.advantages import PromptStatistics
from diffscale.train.losses.ddpo import ddpo_loss
from diffscale.train.losses.on_policy import rollout
from diffscale.train.methods.method import Stage
from diffscale.train.methods.rounds import Rounds

Gathered = tuple[dict[str, Tensor], Tensor, bool]


class Ddpo(Rounds):
    """Advantages within each prompt, over all processes."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage)
        self._prompts = PromptStatistics()

    def sampled(self, number: int) -> dict[str, Tensor]:
        """A rollout of batch `number` and its rewards [B]."""
        batch = self.stage.batch(number)
        made = rollout(self.stage.policy, self.stage.rows, self.stage.keys(number))
        return {**self.held(made.moves), "reward": self.stage.reward_scores(made.x0, batch.captions)}

    def settled(self, held: dict[str, Tensor], captions: list[str]) -> dict[str, Tensor]:
        """Advantages, by the rewards of all processes."""
        own = list(zip(captions, held["reward"].tolist(), strict=True))
        given = self.stage.shared(own)
        rewards = torch.tensor([reward for _, reward in given], dtype=torch.float64)
        first = self.stage.materials.batches.order.process * len(own)
        advantages = self._prompts.advantages([caption for caption, _ in given], rewards)
        return {"advantage": advantages[first : first + len(own)]}

    def loss(self, gathered: Gathered) -> tuple[Tensor, dict[str, float]]:
        """See `ddpo_loss`."""
        held, move, fresh = gathered
        loss, logs = ddpo_loss(self.stage.policy, self.at(held, move), held["advantage"])
        return loss, {**logs, **_rewards(self._held["reward"], fresh)}

    def statistics(self) -> Any:
        return self._prompts.state_dict()

    def load_statistics(self, state: Any) -> None:
        self._prompts.load_state_dict(state)


def _rewards(rewards: Tensor, fresh: bool) -> dict[str, float]:
    """Of samples that are new, and not once more at every step on them."""
    return {"reward": float(rewards.mean()), "reward_std": float(rewards.std(correction=0))} if fresh else {}
