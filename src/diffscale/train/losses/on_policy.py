"""Whole samples drawn with noise at every step, and how likely each step was: what DDPO and D3PO learn from."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from diffscale.engine import noise
from diffscale.train.policy import Policy

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

    def __getitem__(self, index: Tensor) -> Moves:
        """The moves at `index`, an int64 tensor."""
        return Moves(*(getattr(self, f.name)[index.to(getattr(self, f.name).device)] for f in fields(self)))


@dataclass(frozen=True)
class Rollout:
    """B samples of N steps: clean latents `x0` [B, ...], and their N - 1 moves with noise, row by row [B (N - 1)].

    The last step goes to the clean end without noise, so it has no probability.
    """

    x0: Tensor
    moves: Moves

    def of_moves(self, values: Tensor) -> Tensor:
        """`values` [B] of the samples, for each of their moves."""
        return values.repeat_interleave(len(self.moves.time) // len(values))


@torch.no_grad()
def rollout(policy: Policy, rows: Tensor, keys: Tensor, start: Tensor | None = None) -> Rollout:
    """Sample the prompts `rows` int64 [B] on the policy's grid with eta 1, unguided; two steps or more.

    `keys`: int64 [B], of all noise; `start`: keys of the noise to start from instead, so that two may share it.
    """
    times = policy.times
    grid = policy.grid()
    x = policy.prior(noise.fold_rows(keys if start is None else start, "start"))
    visited, log_probs = [x], list[Tensor]()
    for i in range(len(grid) - 1):
        time, to = (at.expand(len(x)) for at in (grid[i], grid[i + 1]))
        x0 = times.clean(x, policy.output(x, time, rows), time)
        mean, deviation = times.posterior(x, x0, time, to, ETA)
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
    return Rollout(times.clean(x, policy.output(x, last, rows), last), moves)


def log_prob(policy: Policy, moves: Moves) -> Tensor:
    """How likely the policy is to take `moves` now, [S], with gradients: the log-density's mean over elements.

    The mean, where a density has the sum, as in the authors' code of DDPO: it makes clip ranges independent of size.
    """
    x0 = policy.times.clean(moves.x, policy.output(moves.x, moves.time, moves.rows), moves.time)
    return _log_normal(moves.after, *policy.times.posterior(moves.x, x0, moves.time, moves.to, ETA))


def _log_normal(x: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    each = -((x - mean) ** 2) / (2 * deviation**2) - deviation.log() - 0.5 * math.log(2 * math.pi)
    return each.flatten(1).mean(1)
