"""Rows of prompts and pictures, wherever they come from."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from diffscale._util.errors import DiffscaleError, explained
from diffscale._util.pixels import pixels, read_picture

Want = Literal["pictures", "pairs", "prompts"]
"""The data that methods learn from: captioned pictures (SFT), preference pairs (DPO), or prompts alone (RLHF)."""


@dataclass(frozen=True)
class Leaked:
    """Evaluation prompts that were found among training prompts, and left out.

    `suites`: rows by suite; `first`: the first few different ones, as they were written.
    """

    suites: dict[str, int]
    first: tuple[str, ...]

    @property
    def count(self) -> int:
        """Rows left out."""
        return sum(self.suites.values())


@dataclass(frozen=True)
class Dataset:
    """Rows to train on: each a prompt and 0, 1 or 2 pictures; of two, the chosen one is first.

    `read(where, side)` gives the encoded bytes of a picture, for `where` out of `places`, of which there is one a row.
    `notes` are sentences for the user about what was left out.
    """

    source: str
    prompts: Sequence[str]
    pictures: int = 0
    read: Callable[[int, int], bytes] | None = None
    places: Sequence[int] = ()
    notes: tuple[str, ...] = ()
    leaked: Leaked = Leaked({}, ())

    def __len__(self) -> int:
        return len(self.prompts)

    def select(self, rows: Sequence[int], *notes: str) -> Dataset:
        """These rows alone, in this order; `notes` are added."""
        return replace(
            self,
            prompts=[self.prompts[i] for i in rows],
            places=[self.places[i] for i in rows] if self.pictures else (),
            notes=(*self.notes, *notes),
        )

    def encoded(self, row: int, side: int = 0) -> bytes:
        """A picture as it is stored; raises DiffscaleError where it cannot be read."""
        assert self.read is not None
        with explained(f"{self._named(row)} cannot be read ({{why}}).", OSError, ValueError):
            return self.read(self.places[row], side)

    def picture(self, row: int, side: int = 0) -> Tensor:
        """A picture: uint8 [3, H, W]; raises DiffscaleError for one that is broken."""
        found = read_picture(
            io.BytesIO(self.encoded(row, side)), pixels, f"{self._named(row)} cannot be read ({{why}})."
        )
        return torch.from_numpy(found.copy()).permute(2, 0, 1)

    def content(self, row: int) -> tuple[str, ...]:
        """SHA-256 of each picture of a row; raises DiffscaleError where one cannot be read."""
        return tuple(hashlib.sha256(self.encoded(row, side)).hexdigest() for side in range(self.pictures))

    def _named(self, row: int) -> str:
        return f"The picture of row {self.places[row]} of {self.source} ({self.prompts[row][:60]!r})"


def preference_pairs(
    source: str, captions: Sequence[Any], labels_0: Sequence[Any], read: Callable[[int, int], bytes]
) -> Dataset:
    """Pairs of which one picture was chosen, in the layout of Pick-a-Pic (Kirstain et al. 2023).

    A label is 1 if the first picture of a row was chosen, 0 if the second; ties and rows without a choice or a caption
    are left out, with a note. `read(row, side)`: the encoded bytes of a picture. Raises DiffscaleError if none is left.
    """
    chosen = {
        row: 0 if label else 1
        for row, label in enumerate(labels_0)
        if isinstance(label, int | float) and label in (0, 1) and isinstance(captions[row], str)
    }
    if not chosen:
        raise DiffscaleError(f"{source} has no preference pairs with a choice: label_0 must be 0 or 1.")
    ties = len(captions) - len(chosen)
    notes = (f"{ties} of {len(captions)} pairs of {source} are ties and are left out.",) if ties else ()
    prompts = [captions[row] for row in chosen]
    return Dataset(source, prompts, 2, lambda row, side: read(row, chosen[row] ^ side), list(chosen), notes)
