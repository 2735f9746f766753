"""shapes-aesthetic: the LAION head on shapes-clip, trained on noisy ratings of generated pictures.

Ratings follow `taste.beauty`, whole numbers from 1 to 10 with noise; the head sees only features that were trained to
match captions, so it is blind to much of the layout.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffscale.shapes.taste import beauty
from diffscale.shapes.train.generated import ShownPicture
from diffscale.shapes.train.loop import fit
from diffscale.verifiers.clip import Clip
from diffscale.verifiers.head import Head

STEPS: Final = 2_000
SIZES: Final = (128, 256, 32, 1)
_NOISE: Final = 1.5  # standard deviation of a rating
_BATCH: Final = 256


def train(groups: Sequence[Sequence[ShownPicture]], folder: Path, steps: int = STEPS) -> Head:
    """Train the head on all but the held pictures."""
    torch.manual_seed(0)
    clip = Clip.load("shapes-clip")
    shown = [one for group in groups for one in group]
    features = torch.cat(
        [embed(clip, [one.pixels() for one in shown[at : at + 256]]) for at in range(0, len(shown), 256)]
    )
    rng = Random("shapes-aesthetic ratings")
    ratings = torch.tensor([rating(one, rng) for one in shown])
    held = torch.tensor([one.is_held_out for one in shown])
    seen, told = features[~held], ratings[~held]

    def loss(step: int) -> Tensor:
        rows = torch.randint(len(seen), (_BATCH,), generator=torch.Generator().manual_seed(step))
        return F.mse_loss(head(seen[rows])[:, 0], told[rows])

    def evaluate(mean: nn.Module, step: int) -> dict[str, float]:
        mean.eval()
        truth = torch.tensor([beauty(one.objects) for one, kept in zip(shown, held, strict=True) if kept])
        guess = mean(features[held])[:, 0]
        return {"correlation_with_rule": float(torch.corrcoef(torch.stack([guess, truth]))[0, 1])}

    head = Head(SIZES)
    return fit(head, loss, folder=folder, steps=steps, lr=1e-3, evaluate=evaluate)  # type: ignore[return-value]


@torch.no_grad()
def embed(clip: Clip, pixels: Sequence[Tensor]) -> Tensor:
    """Unit embeddings [B, 128] of pictures [3, 64, 64] in [-1, 1]."""
    return F.normalize(clip.features((torch.stack(list(pixels)) + 1) / 2), dim=-1)


def rating(shown: ShownPicture, rng: Random) -> float:
    """What one rater says of a picture: a whole number from 1 to 10."""
    return float(min(max(round(beauty(shown.objects) + rng.gauss(0, _NOISE)), 1), 10))
