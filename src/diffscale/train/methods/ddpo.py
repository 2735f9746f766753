"""DDPO: policy gradient over the steps of denoising."""

from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor

from diffscale.train.methods.method import TrainContext
from diffscale.train.methods.on_policy import GatheredMoves, Moves, OnPolicyMethod, log_prob, rollout
from diffscale.train.policy import Policy

CLIP = 1e-4
MOST = 5.0
_LEAST = 1e-6  # keeps equal rewards from an endless advantage


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


class PromptStatistics:
    """Measures how much better a sample is than others of its prompt, as the authors' code of DDPO does.

    A prompt's last `memory` rewards are compared with; where there are fewer than `enough` of them, all rewards that
    are given with it.
    """

    def __init__(self, memory: int = 16, enough: int = 16) -> None:
        self.memory, self.enough = memory, enough
        self._rewards: dict[str, deque[float]] = {}

    def advantages(self, prompts: Sequence[str], rewards: Tensor) -> Tensor:
        """Rewards float64 [B] less their prompt's mean, over its deviation; these rewards count for it already."""
        values = rewards.double().cpu()
        for prompt, value in zip(prompts, values.tolist(), strict=True):
            self._rewards.setdefault(prompt, deque(maxlen=self.memory)).append(value)
        return torch.stack([self._advantage(p, v, values) for p, v in zip(prompts, values, strict=True)])

    def state_dict(self) -> dict[str, list[float]]:
        """Return what a checkpoint keeps."""
        return {prompt: list(rewards) for prompt, rewards in self._rewards.items()}

    def load_state_dict(self, state: dict[str, list[float]]) -> None:
        """Go on from what `state_dict` gave."""
        self._rewards = {prompt: deque(rewards, maxlen=self.memory) for prompt, rewards in state.items()}

    def _advantage(self, prompt: str, value: Tensor, given: Tensor) -> Tensor:
        own = self._rewards[prompt]
        pool = given if len(own) < self.enough else torch.tensor(list(own), dtype=torch.float64)
        return (value - pool.mean()) / (pool.std(correction=0) + _LEAST)


class Ddpo(OnPolicyMethod):
    """Advantages within each prompt, over all processes."""

    def __init__(self, context: TrainContext) -> None:
        super().__init__(context)
        self._prompts = PromptStatistics()

    def sample_batch(self, number: int) -> dict[str, Tensor]:
        """A rollout of batch `number` and its rewards [B]."""
        batch = self.context.use_batch(number)
        x0, moves = rollout(self.policy, self.context.rows, self.context.keys(number))
        return {**self.by_sample(moves), "reward": self.context.reward_scores(x0, batch.captions)}

    def compare(self, samples: dict[str, Tensor], captions: list[str]) -> dict[str, Tensor]:
        """Advantages, by the rewards of all processes."""
        own = list(zip(captions, samples["reward"].tolist(), strict=True))
        every = gather_object(own)
        rewards = torch.tensor([reward for _, reward in every], dtype=torch.float64)
        first = self.context.data.batches.order.process * len(own)
        advantages = self._prompts.advantages([caption for caption, _ in every], rewards)
        return {"advantage": advantages[first : first + len(own)]}

    def loss(self, gathered: GatheredMoves) -> tuple[Tensor, dict[str, float]]:
        loss, logs = ddpo_loss(self.policy, self.moves_of(gathered), gathered.samples["advantage"])
        return loss, {**logs, **self.reward_logs(gathered, "reward")}

    def statistics(self) -> Any:
        return self._prompts.state_dict()

    def load_statistics(self, state: Any) -> None:
        self._prompts.load_state_dict(state)
