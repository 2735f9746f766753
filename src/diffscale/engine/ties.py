"""Candidates that share the best score of a search: a verifier that can compare pictures decides among them.

They play a round robin, whose probabilities give each its strength. Pairs of many searches are compared together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Final

import torch
from torch import Tensor

from diffscale.engine.bradley_terry import strengths

MOST_TIED: Final = 8
"""How many of the candidates that share the best score are compared, the first ones: 28 pairs at most."""

Pair = tuple[int, int]
"""Numbers of two candidates, the lower one first."""


@dataclass(frozen=True)
class Pairs:
    """B pairs of pictures to compare: rows `sides` (int64 [B, 2]) of `pictures` (uint8 [N, 3, H, W], on the CPU).

    `prompts`: what verifiers are told of each pair.
    """

    pictures: Tensor
    sides: Tensor
    prompts: Sequence[str]

    def __len__(self) -> int:
        return len(self.sides)

    def __getitem__(self, index: slice) -> Pairs:
        return replace(self, sides=self.sides[index], prompts=self.prompts[index])

    def side(self, which: int) -> Tensor:
        """The first (0) or the second (1) picture of each pair, float32 [B, 3, H, W] in [0, 1]."""
        return self.pictures[self.sides[:, which]].float() / 255


@dataclass(frozen=True)
class Compare:
    """Compare pictures pair by pair. Answer: the probability that the first is better, float64 [B].

    The engine asks for it when a search is over; no search does.
    """

    state: Pairs


class RoundRobin:
    """The candidates `numbers` of one search, each of which meets each of the others once."""

    def __init__(self, numbers: Sequence[int] = ()) -> None:
        self.numbers = sorted(numbers)
        self._probabilities: dict[Pair, float] = {}

    @property
    def missing(self) -> list[Pair]:
        """The pairs that have not been compared yet."""
        return [pair for pair in combinations(self.numbers, 2) if pair not in self._probabilities]

    @property
    def compared(self) -> list[tuple[int, int, float]]:
        """All pairs so far, in order, each with the probability that the first is better."""
        return [(*pair, self._probabilities[pair]) for pair in sorted(self._probabilities)]

    def take(self, pair: Pair, probability: float) -> None:
        """Enter the probability that the first of `pair` is better."""
        self._probabilities[pair] = probability

    def strengths(self) -> dict[int, float]:
        """The log-strength of each candidate by its number; of none before all pairs were compared."""
        if self.missing or not self._probabilities:
            return {}
        place = {number: row for row, number in enumerate(self.numbers)}
        wins = torch.zeros(len(place), len(place), dtype=torch.float64)
        for first, second, probability in self.compared:
            wins[place[first], place[second]] = probability
            wins[place[second], place[first]] = 1 - probability
        return dict(zip(self.numbers, strengths(wins).tolist(), strict=True))
