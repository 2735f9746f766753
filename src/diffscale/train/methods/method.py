"""The interface of methods, and the context that they work in."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffscale.engine import noise
from diffscale.train.data.batches import Batch
from diffscale.train.lagging import LaggingWeights
from diffscale.train.rewards import Mixture, Reward
from diffscale.train.settings import TrainConfig
from diffscale.train.training_data import TrainingData


@dataclass(frozen=True)
class TrainContext:
    """The settings, data and rewards of a training, as methods use them.

    `rewards` has them one by one, `reward` is all of them together, None where none is given.
    """

    settings: TrainConfig
    data: TrainingData
    rewards: list[Reward]
    reward: Reward | Mixture | None

    def keys(self, number: int, what: str = "pass") -> Tensor:
        """A key for each row of batch `number` of this process, int64 [B].

        The same for as many rows in one process, in as many more passes of a step.
        """
        order = self.data.batches.order
        root = noise.fold(noise.root(self.settings.seed), what, number * order.processes + order.process)
        return torch.tensor([noise.fold(root, row) for row in range(self.settings.train_batch_size)])

    @property
    def rows(self) -> Tensor:
        """The rows of a batch whose prompts the policy has: int64 [B]."""
        return torch.arange(self.settings.train_batch_size)

    def use_batch(self, number: int) -> Batch:
        """Batch `number` of this process; from now on the policy has its prompts."""
        batch = self.data.batches.batch_of(number)
        self.data.set_prompts(batch)
        return batch

    @torch.no_grad()
    def own_samples(self, captions: Sequence[str], keys: Tensor) -> Tensor:
        """Clean latents [B, ...] that the model makes of `captions` as users call it, of noise by `keys` int64 [B]."""
        self.data.set_own_prompts(captions)
        sampler = self.data.base.own
        latents = sampler.run(sampler.prior(keys, self.rows)).x
        return latents.to(torch.promote_types(latents.dtype, torch.float32))

    def reward_scores(self, latents: Tensor, captions: list[str]) -> Tensor:
        """Rewards float64 [B] of clean latents."""
        assert self.reward is not None
        with torch.no_grad():
            return self.reward(self.data.base.policy.decode(latents), captions).detach().double().cpu()


class Method(ABC):
    """Losses by the number of a pass forward and back, counted from 0 over the whole training.

    An optimiser step has `passes` of them. All randomness is a function of that number.
    """

    settings: TrainConfig

    def __init__(self, context: TrainContext) -> None:
        self.context, self.settings, self.policy = context, context.settings, context.data.base.policy

    @staticmethod
    def combined(rewards: list[Reward]) -> Reward | Mixture:
        """Return several rewards as one."""
        return Mixture(rewards)

    @property
    def passes(self) -> int:
        """The number of passes of an optimiser step."""
        return self.settings.gradient_accumulation_steps

    @abstractmethod
    def gather(self, number: int) -> Any:
        """Return what the loss of pass `number` is made of (data, samples, selections), without a graph."""

    @abstractmethod
    def loss(self, gathered: Any) -> tuple[Tensor, dict[str, float]]:
        """Return the loss of what was gathered, a scalar, and what to log."""

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors that the next pass needs and that its number does not give."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:  # noqa: B027 - most methods hold nothing
        """Go on from what `state_dict` gave."""

    def statistics(self) -> Any:
        """Return what the method remembers of past rewards, equal in all processes, for JSON."""
        return None

    def load_statistics(self, state: Any) -> None:  # noqa: B027 - most methods hold none
        """Go on from what `statistics` gave."""

    def original_rewards(self) -> AbstractContextManager[None]:
        """Undo, until the block ends, what the method made of the rewards: they are what users mean by their names."""
        return nullcontext()


class RoundMethod(Method):
    """A method that samples in rounds, and learns from the samples of a round in several passes.

    `samples`: those of the round at hand that later passes need; a checkpoint holds them.
    """

    def __init__(self, context: TrainContext) -> None:
        super().__init__(context)
        self.round = -1
        self.samples: dict[str, Tensor] = {}

    def state_dict(self) -> dict[str, Tensor]:
        return {**self.samples, "round": torch.tensor(self.round)} if self.samples else {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        if state:
            self.samples = {name: tensor for name, tensor in state.items() if name != "round"}
            self.round = int(state["round"])


class LaggingRoundMethod(RoundMethod):
    """A method that also needs the weights as they were at the beginning of a round, or earlier: `lagging`."""

    lagging: LaggingWeights

    def state_dict(self) -> dict[str, Tensor]:
        return {**super().state_dict(), **self.lagging.state_dict()} if self.samples else {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        if state:
            kept = self.lagging.state_dict().keys()
            super().load_state_dict({name: tensor for name, tensor in state.items() if name not in kept})
            self.lagging.load_state_dict(state)
