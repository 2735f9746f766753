"""Whole samples drawn with noise at every step, and how likely each step was: what DDPO and D3PO learn from."""

import math
from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from diffscale._util.errors import DiffscaleError
from diffscale.engine import noise
from diffscale.train.methods.method import RoundMethod, TrainContext
from diffscale.train.policy import Policy
from diffscale.train.rewards import PooledReward
from diffscale.train.traits import SamplingRounds

ETA = 1.0


@dataclass(frozen=True)
class Moves:
    """S steps that were taken: from latents `x` [S, ...] at `time` to `after` at `to`, float64 [S].

    `rows`: int64 [S], their prompts; `log_prob`: [S], of each under the policy that took it.
    """

    x: Tensor
    after: Tensor
    time: Tensor
    to: Tensor
    rows: Tensor
    log_prob: Tensor


@torch.no_grad()
def rollout(policy: Policy, rows: Tensor, keys: Tensor, start: Tensor | None = None) -> tuple[Tensor, Moves]:
    """Sample the prompts `rows` int64 [B] on the policy's grid of N times with eta 1, unguided; two steps or more.

    `keys`: int64 [B], of all noise; `start`: keys of the noise to start from instead, so that two may share it. Returns
    clean latents [B, ...] and the N - 1 moves with noise, row by row [B (N - 1)]. The last step goes to the clean end
    without noise, so it has no probability.
    """
    times = policy.times
    grid = policy.grid()
    x = policy.prior(noise.fold_rows(keys if start is None else start, "start"))
    visited, log_probs = [x], list[Tensor]()
    for i in range(len(grid) - 1):
        time, to = (grid[j].expand(len(x)) for j in (i, i + 1))
        x0 = times.clean(x, policy.output(x, time, rows), time)
        mean, deviation = times.step_mean_and_std(x, x0, time, to, ETA)
        x = mean + deviation * policy.prior(noise.fold_rows(keys, "step", i)).to(mean)
        visited.append(x)
        log_probs.append(_log_normal(x, mean, deviation))
    last = grid[-1].expand(len(x))
    moves = Moves(
        torch.stack(visited[:-1], 1).flatten(0, 1),
        torch.stack(visited[1:], 1).flatten(0, 1),
        grid[:-1].repeat(len(x)),
        grid[1:].repeat(len(x)),
        rows.repeat_interleave(len(grid) - 1),
        torch.stack(log_probs, 1).flatten(0, 1),
    )
    return times.clean(x, policy.output(x, last, rows), last), moves


def log_prob(policy: Policy, moves: Moves) -> Tensor:
    """How likely the policy is to take `moves` now, [S], with gradients: the log-density's mean over elements.

    The mean, where a density has the sum, as in the authors' code of DDPO: it makes clip ranges independent of size.
    """
    x0 = policy.times.clean(moves.x, policy.output(moves.x, moves.time, moves.rows), moves.time)
    return _log_normal(moves.after, *policy.times.step_mean_and_std(moves.x, x0, moves.time, moves.to, ETA))


def _log_normal(x: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    each = -((x - mean) ** 2) / (2 * deviation**2) - deviation.log() - 0.5 * math.log(2 * math.pi)
    return each.flatten(1).mean(1)


@dataclass(frozen=True)
class GatheredMoves:
    """`samples`: what is known of the samples of a batch, [B, ...] each, of moves [B, moves, ...]; `move`: which move
    of each sample is learned from, int64 [B]; `fresh`: whether a round begins."""

    samples: dict[str, Tensor]
    move: Tensor
    fresh: bool


class OnPolicyMethod(RoundMethod):
    """A round samples some batches of prompts, and then takes a step on every `gradient_accumulation_steps` of them.

    A step goes through all moves of its samples, one of each sample at a time, in an order of each sample's own, as in
    the authors' code of DDPO (Black et al. 2024) and of D3PO (Yang et al. 2024): so a pass has as many rows as a batch.
    """

    settings: SamplingRounds

    def __init__(self, context: TrainContext) -> None:
        super().__init__(context)
        if isinstance(context.reward, PooledReward):
            # Its scores say something within one choice alone, and samples of a round are for different prompts.
            raise DiffscaleError(
                f"{self.settings.method} needs a number for each sample, and {context.reward.name!r} compares: give "
                "its members one by one, each as a --reward."
            )

    @property
    def moves(self) -> int:
        """The number of moves of each sample."""
        return len(self.policy.grid()) - 1

    @property
    def passes(self) -> int:
        return self.settings.gradient_accumulation_steps * self.moves

    @abstractmethod
    def sample_batch(self, number: int) -> dict[str, Tensor]:
        """Sample batch `number`; the tensors are [B, ...] on the CPU, those of moves [B, moves, ...]."""

    @abstractmethod
    def compare(self, samples: dict[str, Tensor], captions: list[str]) -> dict[str, Tensor]:
        """Return further tensors, which can be computed once all batches of a round are sampled."""

    def gather(self, number: int) -> GatheredMoves:
        batches, size = self.settings.batches_per_round, self.settings.train_batch_size
        batch, move = divmod(number, self.moves)
        round_, place = divmod(batch, batches)
        fresh = round_ != self.round
        if fresh:
            numbers = range(round_ * batches, (round_ + 1) * batches)
            parts = [self.sample_batch(each) for each in numbers]
            samples = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
            captions = [caption for i in numbers for caption in self.context.data.batches.batch_of(i).captions]
            self.samples, self.round = samples | self.compare(samples, captions), round_
        self.context.use_batch(batch)
        own = {name: tensor[place * size : (place + 1) * size] for name, tensor in self.samples.items()}
        keys = self.context.keys(batch, "moves")
        order = torch.stack([noise.uniform(noise.fold_rows(keys, i)) for i in range(self.moves)], 1).argsort(1)
        return GatheredMoves(own, order[:, move], fresh)

    def by_sample(self, moves: Moves, rollout_name: str = "") -> dict[str, Tensor]:
        """The moves of a rollout of a batch by name, [B, moves, ...] each, so that they can be kept."""
        kept = {name: tensor for name, tensor in vars(moves).items() if name != "rows"}
        return {f"{rollout_name}{name}": tensor.unflatten(0, (-1, self.moves)).cpu() for name, tensor in kept.items()}

    def moves_of(self, gathered: GatheredMoves, rollout_name: str = "") -> Moves:
        """The move of each sample that is learned from; latents are where the network is."""
        each, device = torch.arange(len(gathered.move)), self.policy.like.device
        x, after, time, to, log_prob = (
            gathered.samples[f"{rollout_name}{name}"][each, gathered.move]
            for name in ("x", "after", "time", "to", "log_prob")
        )
        return Moves(x.to(device), after.to(device), time, to, self.context.rows, log_prob.to(device))

    def reward_logs(self, gathered: GatheredMoves, *names: str) -> dict[str, float]:
        """Log the rewards of new samples, and not once more at every step that learns from them."""
        rewards = torch.cat([self.samples[name] for name in names])
        spread = {"reward": float(rewards.mean()), "reward_std": float(rewards.std(correction=0))}
        return spread if gathered.fresh else {}
