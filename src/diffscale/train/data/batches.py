"""The batches of training steps: rows in their order, with latents and embeddings; captions are left out at times.

All that chance decides is a pure function of the seed and of numbers. So a training that goes on after a kill sees what
it would have seen, and every process knows its part without asking.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from diffscale._util.errors import DiffscaleError
from diffscale.engine import noise
from diffscale.train.data.dataset import Dataset
from diffscale.train.data.encodings import Embeddings, Latents


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

    def rows_of(self, step: int) -> list[int]:
        """The rows, `batch` of them, that this process takes in `step`, counted from 0."""
        start = (step * self.processes + self.process) * self.batch
        places = range(start, start + self.batch)
        return [int(permutation(self.rows, self.seed, place // self.rows)[place % self.rows]) for place in places]


@dataclass(frozen=True)
class Batch:
    """Rows of one step of one process, all tensors on the CPU.

    `captions`: the rows' own prompts, which rewards are told; `prompts`: what the model is told, empty at times;
    `embeddings`: of `prompts`, by name; none where they are not kept. `latents` [B, pictures, ...] and `sizes` int64
    [B, pictures, 6] are None for prompts alone; of two pictures the chosen one is first.
    """

    rows: list[int]
    captions: list[str]
    prompts: list[str]
    embeddings: dict[str, Tensor]
    latents: Tensor | None
    sizes: Tensor | None


@dataclass(frozen=True)
class Batches:
    """All steps of a training; `empty` is the share of prompts left out (`--proportion_empty_prompts`).

    Raises DiffscaleError for a share outside [0, 1].
    """

    dataset: Dataset
    order: Order
    embeddings: Embeddings | None
    latents: Latents | None = None
    empty: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.empty <= 1:
            raise DiffscaleError(f"The share of empty prompts must lie in [0, 1], not be {self.empty}.")
        if self.order.rows != len(self.dataset) or (self.latents is not None and len(self.latents) != self.order.rows):
            raise ValueError("order and latents must be of the rows of the data set")

    def batch_of(self, step: int) -> Batch:
        """The batch of `step`, which is a function of the seed and the step, whatever came before."""
        rows, seed = self.order.rows_of(step), self.order.seed
        captions = [self.dataset.prompts[row] for row in rows]
        left_out = (chance(seed, "empty prompt", step, rows) < self.empty).tolist()
        prompts = ["" if out else caption for out, caption in zip(left_out, captions, strict=True)]
        latents = sizes = None
        if self.latents is not None:
            flips = len(self.latents.views) > 1
            mirrored = (chance(seed, "flip", step, rows) < (0.5 if flips else 0)).tolist()
            latents, sizes = self.latents.read(rows, mirrored)
        embeddings = {} if self.embeddings is None else self.embeddings.read(prompts)
        return Batch(rows, captions, prompts, embeddings, latents, sizes)
