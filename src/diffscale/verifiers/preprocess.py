"""Image preprocessing in torch: antialiased, differentiable, without torchvision."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def prepare(images: Tensor, side: int, mean: list[float], std: list[float]) -> Tensor:
    """What a vision tower takes, from `images` [B, 3, H, W] in [0, 1]: [B, 3, side, side], normalised.

    The shorter edge becomes `side` (bicubic, antialiased), then the middle is cut out, as published CLIP
    processors do.
    """
    height, width = images.shape[-2:]
    if (height, width) != (side, side):
        scale = side / min(height, width)
        size = (max(side, round(height * scale)), max(side, round(width * scale)))
        images = F.interpolate(images, size, mode="bicubic", antialias=True).clamp(0, 1)
        top, left = (size[0] - side) // 2, (size[1] - side) // 2
        images = images[..., top : top + side, left : left + side]
    shift = torch.tensor(mean, device=images.device, dtype=images.dtype).view(3, 1, 1)
    scale_by = torch.tensor(std, device=images.device, dtype=images.dtype).view(3, 1, 1)
    return (images - shift) / scale_by
