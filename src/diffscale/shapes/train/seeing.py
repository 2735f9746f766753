"""What teaches a small vision tower to see: which object is at each patch, told by a head that is thrown away.

From captions, choices or views alone so small a tower learns colours and little else in thousands of steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffscale.shapes.scenes import CANVAS, COLOURS, RADIUS, SHAPES, SIZES, TEXTURES, Scene
from diffscale.shapes.train.autoencoder import draw_crowded_scene, render_batch
from diffscale.shapes.train.loop import fit

PATCH: Final = 8  # pixels
_BATCH: Final = 64
_ATTRIBUTES: Final = {"colour": COLOURS, "shape": SHAPES, "texture": TEXTURES, "size": SIZES}

KINDS: Final = sum(len(values) + 1 for values in _ATTRIBUTES.values())
"""Logits of the head for a patch: the values of each attribute and none."""


def train_vision(
    net: nn.Module,
    patches: Callable[[Tensor], Tensor],  # the head's logits [B, 64, KINDS] of pictures [B, 3, 64, 64] in [-1, 1]
    name: str,
    folder: Path,
    steps: int,
) -> nn.Module:
    """`net` trained through `patches` on crowded pictures; `name` seeds the data."""
    fast = torch.compile(patches)

    def loss(step: int) -> Tensor:
        rng = Random(f"{name} vision step {step}")
        scenes = [draw_crowded_scene(rng) for _ in range(_BATCH)]
        x = degrade(render_batch(scenes), torch.Generator().manual_seed(step))
        with torch.autocast("cpu", torch.bfloat16):
            logits = fast(x)
        return patch_loss(logits.float(), patch_labels(scenes))

    seen = fit(net, loss, folder=folder, steps=steps, lr=1e-3, muon=True, every=200)
    return seen.requires_grad_(True)


def degrade(x: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures [B, 3, 64, 64] with noise and blur of a random strength each: generated pictures are not clean."""
    strength = torch.rand(len(x), 2, 1, 1, 1, generator=generator)
    blurred = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    x = torch.lerp(x, blurred, (strength[:, 0] * 1.5 - 0.5).clamp(0, 1))
    return x + 0.15 * (strength[:, 1] - 0.4).clamp(min=0) * torch.randn(x.shape, generator=generator)


def patch_labels(scenes: Sequence[Scene]) -> Tensor:
    """Which value of each attribute the object at each patch has, [B, 4, 64]; 0 where no bounding box reaches."""
    side = CANVAS // PATCH
    labels = torch.zeros(len(scenes), len(_ATTRIBUTES), side, side, dtype=torch.long)
    for row, scene in zip(labels, scenes, strict=True):
        for obj in scene:
            values = [kinds.index(getattr(obj, attribute)) + 1 for attribute, kinds in _ATTRIBUTES.items()]
            r = RADIUS[obj.size]
            # The patches whose centres lie in the bounding box.
            y, x = (slice((v - r + PATCH // 2) // PATCH, (v + r + PATCH // 2) // PATCH) for v in (obj.y, obj.x))
            row[:, y, x] = torch.tensor(values)[:, None, None]
    return labels.flatten(2)


def patch_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of the head's logits [B, 64, KINDS] over patches and attributes of `labels` [B, 4, 64]."""
    parts = logits.split([len(values) + 1 for values in _ATTRIBUTES.values()], dim=-1)
    each = [F.cross_entropy(part.transpose(1, 2), label) for part, label in zip(parts, labels.unbind(1), strict=True)]
    return torch.stack(each).mean()
