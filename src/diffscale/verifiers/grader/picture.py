"""A picture as it is sent to a server, and known by in caches."""

import hashlib
import io
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from diffscale._util.pixels import eight_bit


class Ungraded(UserWarning):
    """The model gave no usable answer for a picture."""


@dataclass(frozen=True)
class Picture:
    """8-bit pixels [H, W, 3] and the prompt that they are graded for; equal ones have one grade."""

    pixels: NDArray[np.uint8] = field(compare=False)
    digest: str
    prompt: str

    @cached_property
    def png(self) -> bytes:
        """The picture as a PNG file."""
        file = io.BytesIO()
        Image.fromarray(self.pixels).save(file, "PNG")
        return file.getvalue()


def as_picture(image: Tensor, prompt: str) -> Picture | None:
    """`image` [3, H, W] in [0, 1] for its prompt, None if it is not finite."""
    if not image.isfinite().all():
        return None
    pixels = eight_bit(image).permute(1, 2, 0).numpy()
    # Of the pixels, not of the PNG: encoders differ.
    digest = hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()
    return Picture(pixels, digest, prompt)
