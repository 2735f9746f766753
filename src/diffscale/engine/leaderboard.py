"""Where the finished candidates of a search stand: which is best, and whose pictures may still be wanted.

With several components a candidate's value depends on all others seen, so one that is not best now can be best later;
but never one that another equals or exceeds in every component. Only pictures that pass that test are kept; where the
best n are wanted, those that fewer than n others equal or exceed. Where ties are to be decided by comparing pictures,
the first few that share the best score are kept too.
"""

import math
from bisect import insort
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor

from diffscale.engine.wanted import Wanted
from diffscale.types import Aggregate, PoolVerifier

_ROWS: Final = 64  # rows that memory is first made for


def by_rows(scores: Tensor) -> Tensor:
    """Scores [B] or [B, K] as [B, K]."""
    return scores.view(len(scores), -1)


def aggregate_pool(scores: Tensor, aggregate: Aggregate | None) -> Tensor:
    """One value [n] for each row of `scores` [n] or [n, K] within this pool; -inf for rows that were dropped."""
    if scores.ndim == 1 or aggregate is None:
        return scores
    usable = scores.isfinite().all(1)
    values = torch.full((len(scores),), -math.inf, dtype=torch.float64)
    if usable.any():
        # Rounded, so that equal rows, which are summed in another order here and there, are of equal value.
        values[usable] = aggregate(scores[usable]).round(decimals=12)
    return values


def candidate_value(pool: Tensor, components: Tensor, verifier: object) -> float:
    """The value of a candidate with `components` [K] among those of `pool` [n, K], which it may not be one of."""
    if not isinstance(verifier, PoolVerifier):
        return float(components[0])
    return float(aggregate_pool(torch.cat([pool, components[None]]), verifier.aggregate)[-1])


@dataclass
class Components:
    """What candidates got, by their numbers, in whatever order they come; `count` is one over the highest number."""

    aggregate: Aggregate | None
    count: int = field(default=0, init=False)
    _rows: Tensor = field(default_factory=lambda: torch.empty(0, 1, dtype=torch.float64), init=False)

    @property
    def components(self) -> Tensor:
        """All components so far, float64 [n, K]; NaN for candidates that are still to come."""
        return self._rows[: self.count]

    def values(self) -> Tensor:
        """What all candidates are worth among each other, float64 [n]."""
        rows = self.components.nan_to_num(nan=-math.inf, neginf=-math.inf, posinf=math.inf)
        return aggregate_pool(rows if rows.shape[1] > 1 else rows[:, 0], self.aggregate)

    def _put(self, number: int, components: Tensor) -> None:
        if number >= len(self._rows):
            rows = torch.full((max(_ROWS, 2 * number), len(components)), math.nan, dtype=torch.float64)
            rows[: self.count] = self._rows[: self.count]
            self._rows = rows
        self.count = max(self.count, number + 1)
        self._rows[number] = components


@dataclass
class Scores(Components):
    """What the verifier gave the finished candidates of one search, their keys, the rows of the sampler's prompts that
    they are of, and the NFE that had been spent."""

    _nfe: dict[int, int] = field(default_factory=dict, init=False)
    _keys: dict[int, int] = field(default_factory=dict, init=False)
    _prompts: dict[int, int] = field(default_factory=dict, init=False)

    def add(self, number: int, components: Tensor, nfe: int, key: int, prompt_index: int) -> None:
        """Take the components [K] of candidate `number`."""
        self._put(number, components)
        self._nfe[number], self._keys[number], self._prompts[number] = nfe, key, prompt_index

    def trace(self) -> list[tuple[int, int, float]]:
        """(number, NFE, value) of every candidate that was better than all before it, by the final values."""
        found: list[tuple[int, int, float]] = []
        highest = -math.inf
        for number, value in enumerate(self.values().tolist()):
            if value > highest:
                found.append((number, self._nfe[number], value))
                highest = value
        return found

    def nfe(self, number: int) -> int:
        """What the search had spent at a candidate."""
        return self._nfe[number]

    def key(self, number: int) -> int:
        """A candidate's key."""
        return self._keys[number]

    def prompt_index(self, number: int) -> int:
        """Which of the sampler's prompts a candidate is of."""
        return self._prompts[number]


@dataclass
class Leaderboard(Components):
    """The ranking of the finished candidates of one search, by components that need not be the verifier's scores.

    `shown`: how many of the best are wanted as thumbnails, `keep_best`: how many in full size. `ties`: how many that
    share the best value, of one component, are kept beside these. `full_size` and `thumbnails`: the numbers of the
    candidates that can still be among them. With `keep_best` 1 and several components `full_size` is the Pareto front.
    """

    shown: int
    keep_best: int = 1
    ties: int = 0
    full_size: set[int] = field(default_factory=set, init=False)
    thumbnails: set[int] = field(default_factory=set, init=False)
    _above: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64), init=False)
    # Of one component: the best, as (-value, number).
    _ranking: list[tuple[float, int]] = field(default_factory=list, init=False)

    def add(self, number: int, ranking: Tensor) -> tuple[bool, bool]:
        """Take candidate `number` with the components [K] that it is ranked by, all of them -inf where it is not to be
        chosen: whether it can be kept in full size, and whether shown.

        Who is overtaken for good is forgotten.
        """
        self._put(number, ranking)
        if self.aggregate is None:
            return self._rank(number, float(ranking[0]))
        if len(self._above) < len(self._rows):
            self._above = torch.cat([self._above, self._above.new_zeros(len(self._rows) - len(self._above))])
        rows, above = self.components, self._above[: self.count]
        no_worse, no_better = (rows >= ranking).all(1), (rows <= ranking).all(1)
        # Of equals the first one stands above. A row not yet filled compares with nothing.
        earlier = torch.arange(self.count) < number
        over = no_worse & (~no_better | earlier)
        above += no_better & (~no_worse | ~earlier)
        self._above[number] = over.sum()
        for numbers, most in ((self.full_size, self.keep_best), (self.thumbnails, self.shown)):
            listed = list(numbers)
            above_each = self._above[listed].tolist()
            numbers.difference_update(n for n, count in zip(listed, above_each, strict=True) if count >= most)
        usable, mine = bool(ranking.isfinite().all()), int(self._above[number])
        kept, shown = usable and mine < self.keep_best, usable and mine < self.shown
        if kept:
            self.full_size.add(number)
        if shown:
            self.thumbnails.add(number)
        return kept, shown

    def wanted(self, start: int, first: bool) -> Wanted:
        """Which pictures can be kept of the candidates from number `start` on; `first`: see there."""
        best = ([number for number in sorted(each) if number < start] for each in (self.full_size, self.thumbnails))
        full, shown = (self.components[numbers] for numbers in best)
        return Wanted(self.keep_best, full, self.shown, shown, first)

    def best(self) -> tuple[int, float] | None:
        """Number and value of the best candidate; None if none is usable."""
        if not self.count:
            return None
        if self.aggregate is None:
            return (self._ranking[0][1], -self._ranking[0][0]) if self._ranking else None
        values = self.values().tolist()
        # Of equals the first one; only they are never overtaken in every component.
        number = min(range(self.count), key=lambda i: (-values[i], i))
        return (number, values[number]) if math.isfinite(values[number]) else None

    def tied(self) -> list[int]:
        """The first `ties` of the candidates of one component that share the best value."""
        return [number for value, number in self._ranking[: self.ties] if value == self._ranking[0][0]]

    def _rank(self, number: int, value: float) -> tuple[bool, bool]:
        """As `add` for one component, where a candidate that is overtaken stays so: only the best few are compared."""
        if not math.isfinite(value):
            return False, False
        most = max(self.shown, self.keep_best, self.ties)
        entry = -value, number
        if len(self._ranking) == most and entry > self._ranking[-1]:
            return False, False
        insort(self._ranking, entry)
        del self._ranking[most:]
        tied, order = len(self.tied()), [ranked for _, ranked in self._ranking]
        self.full_size = set(order[: max(self.keep_best, tied)])
        self.thumbnails = set(order[: max(self.shown, tied)] if self.shown else [])
        return number in self.full_size, number in self.thumbnails
