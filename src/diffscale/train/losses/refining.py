"""The other turn of IterPO: rewards learn from how pictures by the model, as it was and as it is, are ranked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from diffscale.engine import noise
from diffscale.engine.scoring import scored
from diffscale.types import Refinable, Verifier

BATCH: Final = 8
"""Pairs of a step."""


@dataclass(frozen=True)
class Gallery:
    """Pictures uint8 [V, G, 3, H, W] of G `prompts` by V models, one after the other, and their `ranks` float64 [V, G].

    The higher rank of a prompt is the better picture.
    """

    prompts: list[str]
    pictures: Tensor
    ranks: Tensor

    def joined(self, pictures: Tensor, ranks: Tensor) -> Gallery:
        """With the pictures [G, 3, H, W] of one more model."""
        return replace(
            self, pictures=torch.cat([self.pictures, pictures[None]]), ranks=torch.cat([self.ranks, ranks[None]])
        )

    def pairs(self) -> Tensor:
        """All pairs of pictures of a prompt that differ in rank: prompt, better and worse model, int64 [P, 3]."""
        better, worse, prompt = (self.ranks[:, None] > self.ranks[None]).nonzero().unbind(1)
        return torch.stack([prompt, better, worse], 1)


def ranking_loss(verifier: Verifier, better: Tensor, worse: Tensor, prompts: list[str]) -> Tensor:
    """-log sigmoid(r(better) - r(worse)), mean over pairs of pictures [B, 3, H, W] in [0, 1] for the same prompts.

    How IterComp (Zhang et al. 2024, arXiv 2410.07171) and ImageReward train their rewards.
    """
    return -F.logsigmoid(scored(verifier, better, prompts) - scored(verifier, worse, prompts)).mean()


def refine(verifier: Refinable, gallery: Gallery, key: int, epochs: int, rate: float) -> None:
    """Train `verifier` on all pairs of `gallery`, `epochs` times, by AdamW at the learning rate `rate`.

    In IterComp the gallery expands by the new model's pictures, and the rewards are refined on it. The order of pairs
    is a function of `key`.
    """
    pairs, weights = gallery.pairs(), list(verifier.weights())
    for weight in weights:
        weight.requires_grad_(True)
    try:
        optimizer = torch.optim.AdamW(weights, lr=rate)
        for epoch in range(epochs):
            for part in noise.permutation(noise.fold(key, "epoch", epoch), len(pairs)).split(BATCH):
                prompt, better, worse = pairs[part].unbind(1)
                both = [gallery.pictures[each, prompt].to(weights[0].device).float() / 255 for each in (better, worse)]
                loss = ranking_loss(verifier, both[0], both[1], [gallery.prompts[i] for i in prompt.tolist()])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    finally:
        for weight in weights:
            weight.requires_grad_(False).grad = None
