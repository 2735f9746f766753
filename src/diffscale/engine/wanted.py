"""Which pictures of finished candidates come back from a worker: those that can still win, or be shown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffscale.engine.kept_pictures import to_keep


@dataclass(frozen=True)
class Wanted:
    """What a search wants of the pictures of some rows, by the scores that its leaderboard ranks by.

    `keep`: how many of its best it keeps in full size, `full`: float64 [M, K], the scores of those that it has now and
    whose numbers are lower. `show`, `shown`: alike of thumbnails. `first`: whether it also wants the first of the rows
    that has scores, as what the search began with.
    """

    keep: int
    full: Tensor
    show: int
    shown: Tensor
    first: bool


Picture = dict[str, Tensor]
"""What comes back of a candidate: `image` uint8 with its `latents`, or a `thumbnail`, or both; empty for neither."""


def wanted_pictures(wanted: Wanted, ranking: Tensor, images: Tensor, latents: Tensor) -> list[Picture]:
    """Of rows with the scores `ranking` [n, K], their pictures [n, 3, H, W] and latents, those that are wanted.

    No row whose picture the leaderboard keeps is left out: who falls behind as many others as are kept never comes
    back, whatever the other workers find. Only those of lower numbers count, so that a run that stops earlier, with a
    smaller budget, has the pictures of its best, too. Rows of equal scores are not behind each other.
    """
    usable = ranking.isfinite().all(1)
    full, first = _not_behind(ranking, wanted.full, wanted.keep, usable), torch.zeros_like(usable)
    if wanted.first and usable.any():
        first[int(usable.nonzero()[0])] = True
    shown = _not_behind(ranking, wanted.shown, wanted.show, usable)
    found = []
    for i in range(len(ranking)):
        whole = {"latents": latents[i]} if full[i] or first[i] else {}
        found.append(to_keep(images[i], whole, bool(shown[i])) if whole or shown[i] else {})
    return found


def _not_behind(ranking: Tensor, others: Tensor, most: int, usable: Tensor) -> Tensor:
    """Which rows fewer than `most` of `others`, and of the rows before, exceed; bool [n]."""
    if not most:
        return torch.zeros_like(usable)
    rows = ranking.masked_fill(~usable[:, None], -math.inf)
    against = torch.cat([others.reshape(-1, ranking.shape[1]), rows])
    no_worse = (against[None] >= rows[:, None]).all(2)
    better = (against[None] > rows[:, None]).any(2)
    earlier = torch.ones(len(rows), len(against), dtype=torch.bool).tril(len(others) - 1)
    return usable & ((no_worse & better & earlier).sum(1) < most)


def deal_pictures(
    wanted: Sequence[tuple[int, Wanted | None]], ranking: Tensor, images: Tensor, latents: Tensor
) -> list[Picture]:
    """`wanted_pictures` of each piece of a micro-batch's rows, end to end."""
    found: list[Picture] = []
    for count, each in wanted:
        rows = slice(len(found), len(found) + count)
        found += [{}] * count if each is None else wanted_pictures(each, ranking[rows], images[rows], latents[rows])
    return found
