"""A nested pool of candidates that all random searches of one call share.

Candidate i of a slot is the i-th of a random search with that seed (`environment.SearchEnvironment`), a function of
seed, prompt, repeat and i alone: so the best of n for every n, by every verifier, costs one sampling.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from diffscale._util.pixels import eight_bit
from diffscale.bench.papers.calls import Call, Slot
from diffscale.bench.papers.store import Store
from diffscale.engine import noise
from diffscale.engine.batching import MicroBatch
from diffscale.types import Sampler, State

LEVEL = 0.4
"""Noise level of the x0-predictions that self-supervised verifiers compare with."""


class Pool:
    """The candidates of `call`, in `folder`. `open_sampler(prompts)` is asked only where something is missing."""

    def __init__(self, folder: Path, call: Call, open_sampler: Callable[[Sequence[str]], Sampler]) -> None:
        self.call, self._open = call, open_sampler
        self.store = Store(folder / call.id / "pool.sqlite")

    @torch.no_grad()
    def make(
        self,
        wanted: Iterable[tuple[Slot, int]],
        record: bool = False,
        told: Callable[[int], None] | None = None,
        batch_size: int | None = None,
    ) -> int:
        """Sample the candidates `wanted` that are missing, with their predictions at `LEVEL` if `record`; how many.

        `told` hears how many are done.
        """
        held = self.store.held(record)
        missing = [each for each in dict.fromkeys(wanted) if (each[0].name, each[1]) not in held]
        if not missing:
            return 0
        prompts = {slot.condition: slot.prompt for slot, _ in missing}
        rows = {condition: row for row, condition in enumerate(prompts)}
        sampler = self._open(list(prompts.values()))

        def sample(part: slice) -> None:
            batch = missing[part]
            keys = torch.tensor([key_of(self.call.seed, slot, number) for slot, number in batch])
            at = torch.tensor([rows[slot.condition] for slot, _ in batch])
            final, recorded = finish(sampler, sampler.prior(keys, at), record)
            seen = [None] * len(batch) if recorded is None else list(recorded)
            self.store.keep(
                (slot.name, number, picture, early)
                for (slot, number), picture, early in zip(batch, final, seen, strict=True)
            )

        for part, _ in MicroBatch(batch_size).map(sample, len(missing), sampler.steps):
            if told is not None:
                told(part.stop)
        return len(missing)

    def pictures(self, slot: Slot, numbers: Sequence[int], recorded: bool = False) -> Tensor:
        """Candidates uint8 [n, 3, H, W]; raises KeyError for one that was not made."""
        return self.store.pictures(slot.name, numbers, recorded)


def key_of(seed: int, slot: Slot, number: int) -> int:
    """The key of a slot's candidate, as `driver.Task` and its environment fold it."""
    return noise.fold(noise.fold(noise.root(seed), slot.prompt, slot.repeat), "candidate", number)


def finish(sampler: Sampler, start: State, record: bool = False) -> tuple[Tensor, Tensor | None]:
    """Pictures uint8 [B, 3, H, W] of noises, and of their predictions at `LEVEL`."""
    state = sampler.run(start, None, LEVEL if record else None)
    final = eight_bit(sampler.decode(state.x))
    return final, None if state.recorded is None else eight_bit(sampler.decode(state.recorded))
