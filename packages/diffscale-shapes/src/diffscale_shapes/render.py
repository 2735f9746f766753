"""Drawing a scene: antialiased sprites pasted at whole pixels on a dark canvas.

A sprite depends on (shape, size, texture) alone, so the judge can draw exactly what the generator draws.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffscale_shapes.scenes import CANVAS, RADIUS, Obj

Floats = NDArray[np.float32]

BACKGROUND: Final = np.array((18 / 255, 20 / 255, 31 / 255), np.float32)
RGB: Final = {
    name: np.array([v / 255 for v in value], np.float32)
    for name, value in {
        "red": (226, 38, 46),
        "orange": (255, 137, 20),
        "yellow": (250, 226, 60),
        "green": (44, 184, 76),
        "cyan": (70, 220, 230),
        "blue": (52, 92, 246),
        "purple": (176, 66, 222),
        "white": (240, 240, 240),
    }.items()
}
"""Colours as RGB in [0, 1]. On the dark canvas an antialiased edge keeps its object's hue."""

DARK: Final = 0.42
"""Brightness of a texture's dark part, relative to its object's colour."""

_SUPER: Final = 8  # samples per pixel and axis for antialiasing
_STRIPE: Final = 4  # pixels per period of stripes, half of it dark
_DOT: Final = 5  # pixels between dots
_DOT_RADIUS: Final = 1.4


def render(scene: Sequence[Obj]) -> Floats:
    """The scene as an RGB picture [64, 64, 3] in [0, 1]. An object that reaches over the edge is clipped."""
    picture = np.broadcast_to(BACKGROUND, (CANVAS, CANVAS, 3)).copy()
    for obj in scene:
        paste(picture, obj)
    return picture


def render_batch(scenes: Sequence[Sequence[Obj]]) -> Tensor:
    """The scenes as networks take them: float32 [B, 3, 64, 64] in [-1, 1]."""
    return torch.from_numpy(np.stack([render(scene) for scene in scenes])).permute(0, 3, 1, 2) * 2 - 1


def overlap(picture: Floats, obj: Obj) -> tuple[Floats, tuple[slice, slice]]:
    """The part of `picture` [64, 64, 3] that an object's sprite covers, as a view, and the part of the sprite over it.

    The latter is not all of the sprite for an object that reaches over the edge.
    """
    r = RADIUS[obj.size]
    spans = [(max(v - r, 0), min(v + r + 1, CANVAS), v - r) for v in (obj.y, obj.x)]
    rows, columns = (slice(low, high) for low, high, _ in spans)
    inside_rows, inside_columns = (slice(low - start, high - start) for low, high, start in spans)
    return picture[rows, columns], (inside_rows, inside_columns)


def paste(picture: Floats, obj: Obj) -> None:
    """Draw one object onto `picture` [64, 64, 3] in place."""
    view, inside = overlap(picture, obj)
    a, s = (part[inside][..., None] for part in sprite(obj.shape, obj.size, obj.texture))
    view *= 1 - a
    view += a * s * RGB[obj.colour]


@cache
def sprite(shape: str, size: str, texture: str) -> tuple[Floats, Floats]:
    """Coverage and brightness of an object, each [2r+1, 2r+1] in [0, 1], r = `RADIUS[size]`."""
    r = RADIUS[size]
    side = 2 * r + 1
    ticks = (np.arange(side * _SUPER) + 0.5) / _SUPER - side / 2
    x, y = np.meshgrid(ticks, ticks)
    inside = _INSIDE[shape](x / (side / 2), y / (side / 2)).astype(np.float32)
    bright = np.where(_DARK[texture](x, y), DARK, 1).astype(np.float32)

    def pool(fine: Floats) -> Floats:
        return np.asarray(fine.reshape(side, _SUPER, side, _SUPER).mean((1, 3)), np.float32)

    alpha = pool(inside)
    # Brightness is averaged over the covered part of a pixel only, or edges would take on the texture outside.
    return alpha, np.asarray(pool(inside * bright) / np.maximum(alpha, 1e-6), np.float32)


def _star(x: Any, y: Any, waist: float = 0.45) -> Any:
    """A five-pointed star, one point up; `waist` is the inner radius over the outer."""
    y = y + 0.05  # a star with its centre at the origin is lighter below
    sector = math.pi / 5
    angle = abs((np.arctan2(x, -y) + sector) % (2 * sector) - sector)  # 0 at a point, `sector` at a notch
    radius = np.hypot(x, y)
    u, v = radius * np.cos(angle), radius * np.sin(angle)
    # Left of the line from the tip (1, 0) to the notch at the waist.
    nu, nv = waist * math.cos(sector), waist * math.sin(sector)
    return (1 - u) * nv - v * (1 - nu) >= 0


def _dots(x: Any, y: Any) -> Any:
    fold_x, fold_y = ((v + _DOT / 2) % _DOT - _DOT / 2 for v in (x, y))
    return np.hypot(fold_x, fold_y) <= _DOT_RADIUS


_Test = Callable[[Any, Any], Any]  # of coordinates, float64 arrays, y downwards: where it holds

_INSIDE: Final[dict[str, _Test]] = {
    "circle": lambda x, y: x**2 + y**2 <= 1,
    "square": lambda x, y: np.maximum(abs(x), abs(y)) <= 0.88,
    "triangle": lambda x, y: (y <= 0.9) & (abs(x) <= (y + 1) / 1.9),
    "diamond": lambda x, y: abs(x) / 0.8 + abs(y) <= 1,
    "cross": lambda x, y: np.minimum(abs(x), abs(y)) <= 0.34,
    "star": _star,
}
"""Whether a place in a box of [-1, 1] on both axes lies within the outline of a shape."""

_DARK: Final[dict[str, _Test]] = {
    "solid": lambda x, y: np.zeros_like(x, bool),
    "striped": lambda x, y: (y + 0.5) % _STRIPE >= _STRIPE / 2,
    "dotted": _dots,
}
"""Whether a place, in pixels from the centre, is dark in a texture."""
