"""Methods that learn from groups of own samples: rounds of sampling, advantages, and passes on noised samples."""

from abc import abstractmethod
from dataclasses import dataclass

import torch
from accelerate.utils import gather_object
from torch import Tensor

from diffscale.engine import noise
from diffscale.train.groups import Group, advantages, deviation_of, moments, sample_groups
from diffscale.train.lagging import LaggingWeights
from diffscale.train.methods.method import LaggingRoundMethod, RoundMethod, TrainContext
from diffscale.train.policy import Policy
from diffscale.train.rewards import Mixture, PooledReward, Reward
from diffscale.train.selection import search_of
from diffscale.train.traits import Advantaged, Grouped
from diffscale.verifiers.ensemble import Weighted


@dataclass(frozen=True)
class NoisedGroups:
    """S samples of several groups, noised: latents `x`, `x0` and the perfect output `target` [S, ...] at `time` [S].

    `advantage`: float64 [S]; `group` int64 [S]: numbers from 0, which rise, and are those of its prompts; in a group
    the best come first.
    """

    x: Tensor
    x0: Tensor
    target: Tensor
    time: Tensor
    advantage: Tensor
    group: Tensor

    @property
    def rows(self) -> Tensor:
        """The prompts of the samples, int64 [S]."""
        return self.group

    def sums(self, values: Tensor) -> Tensor:
        """The sums of `values` [S] over each group [G]."""
        group = self.group.to(values.device)
        return values.new_zeros(int(group.max()) + 1).index_add(0, group, values)


def noise_groups(
    policy: Policy, x0: Tensor, advantage: Tensor, group: Tensor, keys: Tensor, shared: bool
) -> NoisedGroups:
    """Noise clean latents [S, ...] of `group` int64 [S], each group for the prompt of its number.

    A group is at one time; its samples have one noise if it is `shared`, else each its own: functions of the groups'
    `keys` int64 [G].
    """
    own = keys[group]
    time = policy.times.draw(noise.fold_rows(own, "time"))
    if not shared:
        places = [place for size in group.bincount().tolist() for place in range(size)]
        own = torch.cat([noise.fold_rows(key[None], place) for key, place in zip(own, places, strict=True)])
    eps = policy.prior(noise.fold_rows(own, "noise")).to(x0)
    x, target = policy.times.noised(x0, eps, time), policy.times.target(x0, eps, time)
    return NoisedGroups(x, x0, target, time, advantage, group)


class GroupMethod(RoundMethod):
    """A round samples a group for each prompt of its batches, and goes over them `num_inner_epochs` times."""

    settings: Grouped
    shared_noise = True
    """Whether the samples of a group are noised alike, so that what differs between them is all that counts."""

    def __init__(self, context: TrainContext) -> None:
        super().__init__(context)
        self.search = search_of(self.settings.search)
        self._told: dict[str, float] = {}

    @staticmethod
    def combined(rewards: list[Reward]) -> Reward | Mixture:
        """Each in standard deviations of the group, so that none starves beside one that is easier to raise."""
        name = "+".join(reward.name for reward in rewards)
        return PooledReward(Weighted(name, rewards, [reward.weight for reward in rewards]))

    def gather(self, number: int) -> NoisedGroups:
        """Noised samples of the pass's batch; a new round samples all its batches first."""
        round_, _, place = self.settings.place_in_round(number)
        self._told = {}
        if round_ != self.round:
            self.round = round_
            self.begin_round()
            batches = self.settings.batches_per_round
            found = [self.sample_batch(each) for each in range(round_ * batches, (round_ + 1) * batches)]
            self._keep(found)
        self.context.use_batch(round_ * self.settings.batches_per_round + place)
        x0, advantage, group = (self.samples[f"{place}.{name}"] for name in ("x0", "advantage", "group"))
        return noise_groups(
            self.policy, x0.to(self.policy.like.device), advantage, group, self.context.keys(number), self.shared_noise
        )

    def begin_round(self) -> None:
        """Do what is done before a round samples."""

    def sample_batch(self, number: int) -> list[Group]:
        """The groups of batch `number`, sampled as the model is called."""
        batch, reward = self.context.data.batches.batch_of(number), self.context.reward
        assert reward is not None
        self.context.data.set_own_prompts(batch.captions)
        keys, settings = self.context.keys(number, "own"), self.settings
        return sample_groups(
            self.context.data.base.own, reward, keys, settings.group_size, settings.learned,
            both_ends=settings.from_both_ends, search=self.search,
        )  # fmt: skip

    def _keep(self, batches: list[list[Group]]) -> None:
        """Hold what passes need: of each batch the samples and their advantages."""
        every = [group for groups in batches for group in groups]
        gathered = gather_object([(moments(every), sum(group.nfe for group in every))])
        total = torch.stack([of_rewards for of_rewards, _ in gathered]).sum(0)
        self._told = {
            "reward": float(total[1] / total[0]),
            "reward_std": float(deviation_of(total)),
            "nfe": float(sum(nfe for _, nfe in gathered)),
        }
        self.samples = {}
        for place, groups in enumerate(batches):
            own = advantages(groups, self.deviation(total))
            sizes = torch.tensor([len(group.chosen) for group in groups])
            self.samples |= {
                f"{place}.x0": torch.cat([group.x0 for group in groups]),
                f"{place}.advantage": torch.cat(own),
                f"{place}.group": torch.arange(len(groups)).repeat_interleave(sizes),
            }

    def deviation(self, total: Tensor) -> Tensor | None:
        """What advantages are measured in, by the moments of all rewards of the round; None for each group's own."""
        return deviation_of(total)

    def loss(self, gathered: NoisedGroups) -> tuple[Tensor, dict[str, float]]:
        loss, logs = self.group_loss(gathered)
        return loss, {"loss": float(loss.detach()), **logs, **self._told}

    @abstractmethod
    def group_loss(self, groups: NoisedGroups) -> tuple[Tensor, dict[str, float]]:
        """Return the loss of noised groups, a scalar, and what to log beside it."""


class LaggedMethod(LaggingRoundMethod, GroupMethod):
    """A method on groups whose `lagging` weights follow at the beginning of each round."""

    settings: Advantaged

    def __init__(self, context: TrainContext) -> None:
        super().__init__(context)
        base = context.data.base
        self.lagging = LaggingWeights(base.trainable, self.settings.lag_rate, self.settings.lag_most)

    def begin_round(self) -> None:
        self.lagging.update(self.round)

    def deviation(self, total: Tensor) -> Tensor | None:
        return deviation_of(total) if self.settings.advantage_std == "global" else None

    def group_loss(self, groups: NoisedGroups) -> tuple[Tensor, dict[str, float]]:
        policy, given = self.policy, (groups.x, groups.time, groups.rows)
        output = policy.output(*given)
        loss, logs = self.advantage_loss(groups, output)
        if self.settings.kl_beta:
            with policy.reference():
                base = policy.output(*given)
            distance = (output - base).square().mean()
            loss, logs["kl"] = loss + self.settings.kl_beta * distance, float(distance.detach())
        return loss, logs

    def lagging_output(self, groups: NoisedGroups) -> Tensor:
        """What the weights as they were say of noised groups, [S, ...]."""
        with self.lagging.used():
            return self.policy.output(groups.x, groups.time, groups.rows)

    @abstractmethod
    def advantage_loss(self, groups: NoisedGroups, output: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Return the loss by the network's `output` [S, ...] for noised groups, and what to log."""
