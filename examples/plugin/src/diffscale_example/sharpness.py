"""A verifier of sharpness."""

import torch
from torch import Tensor


def sharpness(images: Tensor, prompts: list[str], power: float = 1.0) -> Tensor:
    """How sharp pictures are: the mean size of the differences between neighbouring pixels, to `power`.

    `images`: [B, 3, H, W] in [0, 1]; the scores are [B] in [0, 1].
    """
    across = (images[..., 1:] - images[..., :-1]).abs().mean((1, 2, 3))
    down = (images[..., 1:, :] - images[..., :-1, :]).abs().mean((1, 2, 3))
    return torch.pow((across + down) / 2, power)
