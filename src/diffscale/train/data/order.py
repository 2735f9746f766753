"""Which rows a step takes, and what chance decides about them: pure functions of the seed and of numbers.

So a training that goes on after a kill sees what it would have seen, and every process knows its part without asking.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from diffscale._util.errors import DiffscaleError
from diffscale.engine import noise


@lru_cache(maxsize=4)
def permutation(rows: int, seed: int, *path: int | str) -> Tensor:
    """The numbers 0 to rows - 1 in an order that `seed` and `path` decide alone: int64 [rows]; not to be written to."""
    return noise.permutation(noise.fold(noise.root(seed), "order", *path), rows)


def chance(seed: int, what: str, step: int, rows: list[int]) -> Tensor:
    """A uniform draw in (0, 1) for each of `rows` in `step`, for the decision `what`: float64 [B]."""
    root = noise.root(seed)
    return noise.uniform(torch.tensor([noise.fold(root, what, step, row) for row in rows], dtype=torch.int64))


@dataclass(frozen=True)
class Order:
    """Rows of a data set, epoch after epoch, each epoch in an order of its own, cut into the steps of all processes.

    Every row comes once in an epoch, over all processes together; where an epoch ends within a step the next begins, so
    all steps are full. `batch`: rows a process takes in a step. A step here is one pass forward and back: where
    gradients are accumulated, optimiser step s has the steps s * accumulation to (s + 1) * accumulation - 1.
    """

    rows: int
    batch: int
    seed: int = 0
    process: int = 0
    processes: int = 1

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise DiffscaleError("There are no rows to train on: give other data.")
        if self.batch < 1 or not 0 <= self.process < self.processes:
            raise ValueError(f"no batch of {self.batch} for process {self.process} of {self.processes}")

    def at(self, step: int) -> list[int]:
        """The rows, `batch` of them, that this process takes in `step`, counted from 0."""
        start = (step * self.processes + self.process) * self.batch
        places = range(start, start + self.batch)
        return [int(permutation(self.rows, self.seed, place // self.rows)[place % self.rows]) for place in places]
