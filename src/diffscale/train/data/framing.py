"""From a picture of any size to a square one: resized, cropped, at times mirrored."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diffscale.engine import noise
from diffscale.verifiers.preprocess import resize


@dataclass(frozen=True)
class Framing:
    """What `--resolution`, `--center_crop` and `--random_flip` of diffusers' training scripts say.

    The shorter edge becomes `resolution`, antialiased; a square is cut from the middle, or at a place that `seed` and
    the picture decide. With `random_flip` there is a second view of every picture: mirrored, and cut at another place.
    A picture's crops do not change from epoch to epoch, since its latents are made once.
    """

    resolution: int
    center_crop: bool = False
    random_flip: bool = False
    seed: int = 0

    @property
    def views(self) -> tuple[bool, ...]:
        """Whether each view is mirrored."""
        return (False, True) if self.random_flip else (False,)

    def place(self, content: tuple[str, ...], mirrored: bool) -> tuple[float, float] | None:
        """Where the pictures of a row are cut, as shares of the free room above and to the left; None: the middle.

        `content`: the digests of all its pictures, so that the two of a pair are cut alike.
        """
        if self.center_crop:
            return None
        root = noise.root(self.seed)
        keys = [noise.fold(root, "crop", axis, int(mirrored), *content) for axis in ("down", "right")]
        down, right = noise.uniform(torch.tensor(keys)).tolist()
        return down, right

    def name(self, content: tuple[str, ...], mirrored: bool) -> str:
        """What tells this view of a picture from all others of it."""
        return f"{self.resolution} {self.place(content, mirrored)} {mirrored}"

    def frame(self, picture: Tensor, place: tuple[float, float] | None, mirrored: bool) -> tuple[Tensor, Tensor]:
        """A picture uint8 [3, H, W] as float32 [3, resolution, resolution] in [0, 1], and its sizes.

        The sizes, int64 [6], are what SDXL is told as time ids: height and width before, the crop's top and left edge
        in the resized picture, height and width after (Podell et al. 2023, section 2.2).
        """
        side, (height, width) = self.resolution, picture.shape[-2:]
        # The longer edge is cut off to whole pixels, as PIL-based processors do.
        size = (side, int(side * width / height)) if height <= width else (int(side * height / width), side)
        found = resize(picture[None].float() / 255, *size)[0]
        if mirrored:
            found = found.flip(-1)
        room = size[0] - side, size[1] - side
        top, left = (
            (free // 2 for free in room)
            if place is None
            else (min(int(share * (free + 1)), free) for share, free in zip(place, room, strict=True))
        )
        sizes = torch.tensor([height, width, top, left, side, side])
        return found[:, top : top + side, left : left + side].contiguous(), sizes
