"""Pictures as files hold them: which are read, and how."""

from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Final, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from diffscale._util.errors import explained

Seen = TypeVar("Seen")

SUFFIXES: Final = (".jpeg", ".jpg", ".png", ".webp")
"""The names of pictures that are read end with one of these, in any case."""

READING: Final = "2: upright, on white"
"""How files become pixels. What is made of pixels and kept has it in its key, so that another reading makes it anew."""

# No other is tried, whatever a file is called: PIL would start Ghostscript for EPS.
_FORMATS: Final = ("JPEG", "PNG", "WEBP")
_ORIENTATION: Final = 0x0112  # the tag of EXIF
_UPRIGHT: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What brings a picture upright, by the orientation that EXIF 2.3 states."""
_LYING: Final = (5, 6, 7, 8)


def read_picture(source: Path | IO[bytes], look: Callable[[Image.Image], Seen], unreadable: str) -> Seen:
    """What `look` sees in the JPEG, PNG or WebP picture `source`, such as `pixels` or `upright_size`.

    Raises DiffscaleError of the sentence `unreadable`, with its "{why}", for what is broken or of another format.
    """
    kinds = OSError, SyntaxError, ValueError, Image.DecompressionBombError
    with explained(unreadable, *kinds), Image.open(source, formats=_FORMATS) as picture:
        return look(picture)


def pixels(picture: Image.Image) -> NDArray[np.uint8]:
    """The picture as uint8 [H, W, 3], upright as its EXIF says; what is transparent shows white.

    Raises ValueError for modes of more than 8 bits, which would be cut off.
    """
    if picture.mode.startswith(("I", "F")):
        raise ValueError("it has more than 8 bits a channel")
    upright = _UPRIGHT.get(_orientation(picture))
    if picture.has_transparency_data:
        shown = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", shown.size, "white"), shown)
    picture = picture.convert("RGB")
    return np.asarray(picture if upright is None else picture.transpose(upright))


def upright_size(picture: Image.Image) -> tuple[int, int]:
    """Width and height as `pixels` has them."""
    width, height = picture.size
    # To know the orientation of a PNG takes to decode it, and a square's size does not ask for it.
    return (height, width) if width != height and _orientation(picture) in _LYING else (width, height)


def eight_bit(images: Tensor) -> Tensor:
    """Float pictures in [0, 1], of any shape, as uint8 on the CPU: rounded, and clamped where they leave the range."""
    return (images.detach().float() * 255).round().clamp(0, 255).to(torch.uint8).cpu()


def as_float(found: NDArray[np.uint8]) -> Tensor:
    """Pixels uint8 [..., H, W, 3] as float32 [..., 3, H, W] in [0, 1]."""
    return torch.from_numpy(np.array(found)).movedim(-1, -3).float() / 255


def _orientation(picture: Image.Image) -> Any:
    try:
        return picture.getexif().get(_ORIENTATION)
    except OSError:  # of the picture itself, which is decoded to know the EXIF of a PNG
        raise
    except Exception:  # EXIF that cannot be read, for which PIL has many errors, says nothing
        return None
