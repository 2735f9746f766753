"""How much better than its prompt's usual a sample is: rewards normalised by what their prompt had before."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

_LEAST = 1e-6  # keeps equal rewards from an endless advantage


class PromptStatistics:
    """The last `held` rewards of every prompt, as in the authors' code of DDPO (Black et al. 2024, arXiv 2305.13301).

    A prompt with fewer than `enough` is measured by the mean and deviation of all rewards given with it.
    """

    def __init__(self, held: int = 16, enough: int = 16) -> None:
        self.held, self.enough = held, enough
        self._rewards: dict[str, deque[float]] = {}

    def advantages(self, prompts: Sequence[str], rewards: Tensor) -> Tensor:
        """Rewards float64 [B] less their prompt's mean, over its deviation; these rewards count for it already."""
        values = rewards.double().cpu()
        for prompt, value in zip(prompts, values.tolist(), strict=True):
            self._rewards.setdefault(prompt, deque(maxlen=self.held)).append(value)
        return torch.stack([self._advantage(p, v, values) for p, v in zip(prompts, values, strict=True)])

    def state_dict(self) -> dict[str, list[float]]:
        """What a checkpoint keeps."""
        return {prompt: list(rewards) for prompt, rewards in self._rewards.items()}

    def load_state_dict(self, state: dict[str, list[float]]) -> None:
        """Go on from what `state_dict` gave."""
        self._rewards = {prompt: deque(rewards, maxlen=self.held) for prompt, rewards in state.items()}

    def _advantage(self, prompt: str, value: Tensor, given: Tensor) -> Tensor:
        own = self._rewards[prompt]
        pool = given if len(own) < self.enough else torch.tensor(list(own), dtype=torch.float64)
        return (value - pool.mean()) / (pool.std(correction=0) + _LEAST)
