"""Pictures as files hold them."""

import torch
from torch import Tensor


def eight_bit(images: Tensor) -> Tensor:
    """Float pictures in [0, 1], of any shape, as uint8 on the CPU: rounded, and clamped where they leave the range."""
    return (images.detach().float() * 255).round().clamp(0, 255).to(torch.uint8).cpu()
