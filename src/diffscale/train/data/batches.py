"""What a training step gets: rows in their order, with latents, embeddings and captions left out at times."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from diffscale._util.errors import DiffscaleError
from diffscale.train.data.dataset import Dataset
from diffscale.train.data.encodings import Embeddings, Latents
from diffscale.train.data.order import Order, chance


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

    def at(self, step: int) -> Batch:
        """The batch of `step`: a function of the seed and the step, whatever came before."""
        rows, seed = self.order.at(step), self.order.seed
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
