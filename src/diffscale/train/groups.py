"""Groups of samples of the model's own, all of one prompt, which a search makes; and how good each is among them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, cast

import torch
from torch import Tensor

from diffscale._util.errors import DiffscaleError
from diffscale.train.selection import Found, KeepingSampler, MakeSearch, search_each
from diffscale.types import Sampler, Verifier

MOST: Final = 5.0
"""Advantages are cut off at this many standard deviations."""
_LEAST: Final = 1e-6  # keeps equal rewards from an endless advantage


@dataclass(frozen=True)
class Group:
    """Samples of one prompt that are learned from: `x0` [L, ...], the best first, on the CPU.

    `rewards` float64 [K]: of all samples that the search finished; `chosen` int64 [L]: which of these are in `x0`;
    `nfe`: what the search spent.
    """

    x0: Tensor
    rewards: Tensor
    chosen: Tensor
    nfe: int


@torch.no_grad()
def sample_groups(
    sampler: Sampler,
    verifier: Verifier,
    keys: Tensor,
    size: int,
    kept: int,
    *,
    both_ends: bool = True,
    search: MakeSearch | None = None,
    batch_size: int | None = None,
) -> list[Group]:
    """A group for each of the B prompts of `sampler`, whose draws are functions of `keys` int64 [B].

    `search` finishes samples with the NFE of `size` whole ones; by default it is random search for `size`. Of these the
    best and the worst `kept` / 2 are learned from, or the best `kept` alone, without `both_ends`: the samples that
    differ most say most (high-variance subsets, arXiv 2512.15347). A search that finishes fewer has all
    of them learned from.

    Raises DiffscaleError for a verifier that scores more than single pictures and where a search finishes but one,
    BudgetTooSmall if the NFE do not pay for the search.
    """
    keeping = KeepingSampler(sampler)
    found = search_each(cast(Sampler, keeping), verifier, keys, size, sampler.steps, search, batch_size)
    return [_group(row, one, keeping, kept, both_ends) for row, one in enumerate(found)]


def _group(row: int, found: Found, keeping: KeepingSampler, kept: int, both_ends: bool) -> Group:
    usable = found.rewards.isfinite()
    rewards, keys = found.rewards[usable], torch.tensor(found.keys)[usable]
    order = rewards.argsort(descending=True, stable=True)
    if both_ends:
        if len(order) < 2:
            raise DiffscaleError(
                "A group needs two finished samples or more, and the search finished fewer: give a larger group_size, "
                "or another search."
            )
        half = min(kept, len(order)) // 2
        order = order if kept >= len(order) else torch.cat([order[:half], order[len(order) - half :]])
    chosen = order[:kept]
    latents = torch.stack([keeping.finished[row, key] for key in keys[chosen].tolist()])
    return Group(latents.float().cpu(), rewards, chosen, found.nfe)


def advantages(groups: Sequence[Group], deviation: Tensor | None) -> list[Tensor]:
    """How much better than its group each sample is that is learned from, in `deviation`s: float64 [L] each.

    In standard deviations of the group's own where there is no `deviation` (GRPO); cut off at `MOST`. Groups whose
    rewards are all equal have advantages of 0.
    """
    found = []
    for group in groups:
        away = group.rewards - group.rewards.mean()
        spread = away.square().mean().sqrt() if deviation is None else deviation
        found.append((away / (spread + _LEAST)).clamp(-MOST, MOST)[group.chosen])
    return found


def moments(groups: Sequence[Group]) -> Tensor:
    """Number, sum and sum of squares of all rewards, float64 [3], to be added up over processes for `deviation_of`."""
    rewards = torch.cat([group.rewards for group in groups])
    return torch.stack([torch.tensor(float(len(rewards)), dtype=torch.float64), rewards.sum(), rewards.square().sum()])


def deviation_of(moments: Tensor) -> Tensor:
    """The standard deviation of all rewards whose `moments` were added up."""
    count, total, squares = moments
    return (squares / count - (total / count) ** 2).clamp(min=0).sqrt()
