"""What a search sees: fresh keys, the sampler's free algebra, and how much it may still spend."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from diffscale import noise
from diffscale.ledger import Ledger
from diffscale.types import Sampler, State


@dataclass
class SearchEnvironment:
    """The Environment of one search on prompt `row`; all its randomness descends from `key`."""

    sampler: Sampler
    row: int
    key: int
    ledger: Ledger
    suggest_chunk: Callable[[], int]
    drawn: int = 0

    @property
    def steps(self) -> int:
        return self.sampler.steps

    @property
    def nfe_left(self) -> int:
        return self.ledger.left

    @property
    def chunk(self) -> int:
        return self.suggest_chunk()

    def prior(self, n: int) -> State:
        return self.sampler.prior(self._fresh_keys(n), torch.full((n,), self.row))

    def branch(self, state: State, n: int) -> State:
        copies = state.repeat(n)
        return replace(copies, key=self._fresh_keys(len(copies)))

    def step(self, state: State, noise: Tensor | None = None) -> State:
        return self.sampler.step(state, noise)

    def renoise(self, state: State, to: int) -> State:
        keys = noise.fold_rows(state.key, "renoise", state.step, to)
        fresh = noise.normal(keys, state.x.shape[1:])
        return self.sampler.renoise(state, to, fresh.to(state.x))

    def _fresh_keys(self, n: int) -> Tensor:
        first, self.drawn = self.drawn, self.drawn + n
        keys = [noise.fold(self.key, "candidate", i) for i in range(first, self.drawn)]
        return torch.tensor(keys, dtype=torch.int64)
