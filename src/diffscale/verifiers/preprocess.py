"""Image preprocessing in torch: antialiased, differentiable, without torchvision.

Bicubic resizing is that of PIL, which published networks were scored with: the width, then the height, clipped after
each, so that pictures agree with PIL's to 1/255. (Pillow 13 takes the height first for some shapes, which shows only
where much is clipped.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
import transformers
from torch import Tensor
from torch.nn import functional as F

from diffscale._util.errors import DiffscaleError
from diffscale.models.files import pretrained

CLIP_MEAN: Final = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Final = (0.26862954, 0.26130258, 0.27577711)
"""Per-channel mean and standard deviation that CLIP and BLIP were trained with."""


@dataclass(frozen=True)
class Preprocessing:
    """What makes pictures [B, 3, H, W] in [0, 1] what a vision network takes: [B, 3, side, side], normalised.

    `mean` and `std`: subtracted from each channel, and what it is divided by then. `edge`: what the shorter edge
    becomes before `crop` cuts the middle out, `side` if None.
    """

    side: int
    mean: Sequence[float] = CLIP_MEAN
    std: Sequence[float] = CLIP_STD
    edge: int | None = None

    @classmethod
    def load(cls, model: str, what: str, side: int | None = None) -> Preprocessing:
        """The preprocessing of a Hub id, folder or shipped name, at `side` pixels where they are given.

        `what`: the kind of network, as users call it. Raises DiffscaleError if it cannot be loaded.
        """
        processor = pretrained(transformers.AutoImageProcessor, model, what, backend="pil")
        if side is not None:
            return cls(side, processor.image_mean, processor.image_std)
        size = getattr(processor, "crop_size", None) or processor.size
        if "height" not in size:
            raise DiffscaleError(f"The preprocessing in {model} states no height in crop_size or size; add it.")
        edge = processor.size.get("shortest_edge")
        return cls(size["height"], processor.image_mean, processor.image_std, edge)

    def crop(self, images: Tensor) -> Tensor:
        """The middle of each picture, as published CLIP, ImageReward and DINOv2 processors cut it out."""
        height, width = images.shape[-2:]
        edge = self.edge or self.side
        # The longer edge is cut off to whole pixels, as PIL-based processors do.
        size = (edge, int(edge * width / height)) if height <= width else (int(edge * height / width), edge)
        top, left = (size[0] - self.side) // 2, (size[1] - self.side) // 2
        return self._normalise(resize(images, *size)[..., top : top + self.side, left : left + self.side])

    def stretch(self, images: Tensor) -> Tensor:
        """Whole pictures, whatever their shape was, as BLIP's question answering sees them."""
        return self._normalise(resize(images, self.side, self.side))

    def letterbox(self, images: Tensor) -> Tensor:
        """Whole pictures with black bars on both sides, so that they keep their shape, as HPS v2 sees them."""
        height, width = images.shape[-2:]
        scale = self.side / max(height, width)
        images = resize(images, max(1, round(height * scale)), max(1, round(width * scale)))
        down, right = self.side - images.shape[-2], self.side - images.shape[-1]
        return self._normalise(F.pad(images, (right // 2, right - right // 2, down // 2, down - down // 2)))

    def _normalise(self, images: Tensor) -> Tensor:
        mean, std = images.new_tensor([self.mean, self.std])[..., None, None]
        return (images - mean) / std


def resize(images: Tensor, height: int, width: int) -> Tensor:
    """`images` [B, 3, H, W] in [0, 1] at another size, as PIL's bicubic filter makes them."""
    if images.shape[-1] != width:
        images = F.interpolate(images, (images.shape[-2], width), mode="bicubic", antialias=True).clamp(0, 1)
    if images.shape[-2] != height:
        images = F.interpolate(images, (height, width), mode="bicubic", antialias=True).clamp(0, 1)
    return images


def resize_like_tensorflow(images: Tensor, height: int, width: int) -> Tensor:
    """Bilinear as in TensorFlow 1, which FID's Inception was fed by.

    Pixel i of the result is taken at i * H / height, without the half-pixel shift of later libraries and without
    antialiasing.
    """

    def along(images: Tensor, size: int) -> Tensor:
        """The last axis at another size."""
        old = images.shape[-1]
        places = torch.arange(size, device=images.device, dtype=torch.float64) * (old / size)
        low = places.floor().long().clamp(max=old - 1)
        high = (low + 1).clamp(max=old - 1)
        return torch.lerp(images[..., low], images[..., high], (places - low).to(images.dtype))

    return along(along(images, width).mT, height).mT
