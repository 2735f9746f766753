"""The steps of many trajectories in one batch for the network, and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from diffscale._util.errors import unknown
from diffscale.train.times import Times
from diffscale.train.trajectories import Visits

Form = Literal["consistent", "published"]


@dataclass(frozen=True)
class Steps:
    """S visited steps of B trajectories: latents `x` [S, ...] at `time` float64 [S] for the prompts `rows` int64 [S].

    `x0`, `eps`: the data [S, ...] that their trajectory began with, and the noise at first; `began`: its first time
    [S]. `of`: int64 [S], which trajectory; `starts`: int64 [B], where each begins.
    """

    x: Tensor
    time: Tensor
    rows: Tensor
    x0: Tensor
    eps: Tensor
    began: Tensor
    of: Tensor
    starts: Tensor

    def target(self, times: Times, form: Form) -> Tensor:
        """What the network shall say at each step [S, ...].

        `consistent`: what leads from there to the data. `published`: the target of the trajectory's first step at every
        step, as the authors' code has it, which is off once the latents have moved. Raises UnknownName for others.
        """
        match form:
            case "consistent":
                return times.consistent(self.x, self.x0, self.time)
            case "published":
                return times.target(self.x0, self.eps, self.began)
            case other:
                raise unknown("form", other, ("consistent", "published"))

    def mean(self, values: Tensor) -> Tensor:
        """The mean of `values` [S] over the steps of each trajectory: [B]."""
        of = self.of.to(values.device)
        count = of.bincount(minlength=len(self.starts)).to(values)
        return values.new_zeros(len(self.starts)).index_add(0, of, values) / count

    def first(self) -> Steps:
        """The first step of each trajectory alone."""
        at, alone = self.starts, torch.arange(len(self.starts))
        there = at.to(self.x.device)
        return Steps(
            self.x[there], self.time[at], self.rows[at], self.x0[there], self.eps[there], self.began[at], alone, alone
        )  # fmt: skip


def steps_of(trajectories: Sequence[Visits], rows: Tensor) -> Steps:
    """The steps of `trajectories`, each for its prompt of `rows` int64 [B]."""
    lengths = torch.tensor([len(one.time) for one in trajectories])
    of = torch.arange(len(trajectories)).repeat_interleave(lengths)
    x = torch.cat([one.x for one in trajectories])
    at = of.to(x.device)
    return Steps(
        x,
        torch.cat([one.time for one in trajectories]),
        rows[of],
        torch.stack([one.x0 for one in trajectories])[at],
        torch.stack([one.eps for one in trajectories])[at],
        torch.stack([one.time[0] for one in trajectories])[of],
        of,
        lengths.cumsum(0) - lengths,
    )
