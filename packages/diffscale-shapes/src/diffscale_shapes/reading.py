"""Reading a picture back into its objects, without a trained network: analysis by synthesis.

Pixels unlike the background fall into connected components; in each, the sprite (shape, size, texture, colour, place)
that takes away most of the squared error is read and subtracted, until nothing is left that looks like an object.
A blob in which nothing is read this way is too faint or too incomplete; the sprite of the best scaled fit is read then.
A second pass reads every object again with all others subtracted, which mends what overlaps misled.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from diffscale_shapes.render import BACKGROUND, RGB, Floats, overlap, sprite
from diffscale_shapes.scenes import CANVAS, COLOURS, RADIUS, SHAPES, SIZES, TEXTURES, Obj

_CONTRAST: Final = 0.15  # a spot further from the background than this, in any channel, belongs to an object
_LEAST_GAIN: Final = 5.0  # squared error, summed over pixels and channels: a dim small object has about 15
_LEAST_FIT: Final = 0.25  # share of its own energy that an object must explain
_LEAST_STRENGTH: Final = 0.35  # of an object that is faint or partly there: a half object has 0.5
_MOST: Final = 12  # objects read at the most; scenes have six


@dataclass(frozen=True)
class Reading:
    """An object read from a picture, and how well it fits there.

    `fit` is 1 - |rest - sprite|^2 / |sprite|^2 in the sprite's box, at least 0, where `rest` is the picture less the
    background and all other objects: 1 for an exact fit; what the sprite leaves over counts against it as well.
    """

    obj: Obj
    fit: float


def read_picture(picture: Floats) -> list[Reading]:
    """The objects of an RGB picture [64, 64, 3] in [0, 1], most certain first; an empty list for an empty one.

    Raises ValueError for another shape or for values that are not finite.
    """
    if picture.shape != (CANVAS, CANVAS, 3) or not np.isfinite(picture).all():
        raise ValueError(f"the judge reads finite pictures of shape [64, 64, 3], not {picture.shape}")
    rest = picture.astype(np.float32) - BACKGROUND
    found: list[_Candidate] = []
    blobs, _ = ndimage.label(_foreground(rest), np.ones((3, 3)))
    for number, box in enumerate(ndimage.find_objects(blobs), 1):
        empty = True
        while len(found) < _MOST:
            here = (blobs[box] == number) & _foreground(rest)[box]
            # Other blobs are hidden, or a large sprite would cover some of a bright neighbour to gain from it.
            mine = np.where((blobs == number) | (blobs == 0), 1, 0).astype(np.float32)[..., None]
            # Only while nothing is read, or what a deformed object leaves over would be read as a faint one.
            best = _best(rest * mine, box, here, faint=empty) if here.any() else None
            if best is None:
                break
            found.append(best)
            empty = False
            _add(rest, best.obj, -1)
    return _read_again(rest, found)


def _foreground(rest: Floats) -> NDArray[np.bool_]:
    # Averaged over 3x3 pixels, so that noise makes no objects.
    return np.asarray(abs(ndimage.uniform_filter(rest, (3, 3, 1))).max(-1) > _CONTRAST)


def _read_again(rest: Floats, found: list[_Candidate]) -> list[Reading]:
    readings = []
    for first in sorted(found, key=lambda one: -one.gain):
        obj = first.obj
        _add(rest, obj, 1)
        r = RADIUS[obj.size] // 2
        box = tuple(slice(max(v - r, 0), min(v + r + 1, CANVAS)) for v in (obj.y, obj.x))
        here = _foreground(rest)[box]
        best = _best(rest, box, here, faint=first.faint) if here.any() else None
        if best is None:
            continue
        obj = best.obj
        _add(rest, obj, -1)
        off = float((overlap(rest, obj)[0] ** 2).sum())
        readings.append(Reading(obj, max(0.0, 1 - off / float((_painted(obj) ** 2).sum()))))
    return sorted(readings, key=lambda reading: -reading.fit)


@dataclass(frozen=True)
class _Candidate:
    """An object, the squared error it takes away, and whether that is at less than its full strength."""

    gain: float
    obj: Obj
    faint: bool


def _best(rest: Floats, box: tuple[slice, ...], here: NDArray[np.bool_], faint: bool) -> _Candidate | None:
    """The object centred in `box` that takes most squared error from `rest`, None if none takes enough.

    With `faint`, if none does at full strength, the one that does so at the strength that suits it best.
    """
    at_full, scaled = [], []
    colours, across = _colours(rest[box][here]), box[1].stop - box[1].start
    for size in SIZES:
        lit, covered = _kernels(size)
        # T = brightness RGB - coverage background, so <D, T> takes products with one number a pixel instead of three.
        behind = np.repeat(_windows(rest @ BACKGROUND, box, RADIUS[size]) @ covered, len(TEXTURES), 1)
        for colour in colours:
            energy = _energies(size, colour)
            dots = _windows(rest @ RGB[colour], box, RADIUS[size]) @ lit - behind
            # ||D||^2 - ||D - T||^2 = 2 <D, T> - ||T||^2 for the residual D and the painted sprite T
            at_full.append(_top(2 * dots - energy, energy, across, colour, size))
            if faint:
                # ||D||^2 - ||D - s T||^2 = <D, T>^2 / ||T||^2 at the best strength s = <D, T> / ||T||^2
                scaled.append(_top(np.maximum(dots, 0) ** 2 / energy, energy, across, colour, size))
    for matches, least in ((at_full, _LEAST_FIT), (scaled, _LEAST_STRENGTH**2)):
        if not matches:
            continue
        gain, energy_of_best, obj = max(matches, key=lambda one: one[0])
        if gain >= max(_LEAST_GAIN, least * energy_of_best):
            placed = replace(obj, x=obj.x + box[1].start, y=obj.y + box[0].start)
            return _Candidate(gain, placed, matches is scaled)
    return None


def _top(gains: Floats, energy: Floats, across: int, colour: str, size: str) -> tuple[float, float, Obj]:
    """The greatest of gains [places, kinds], the energy [kinds] of its sprite, and its object, placed in the box."""
    place, kind = np.unravel_index(int(gains.argmax()), gains.shape)
    y, x = divmod(int(place), across)
    shape, texture = _KINDS[kind]
    return float(gains[place, kind]), float(energy[kind]), Obj(shape, colour, texture, size, x, y)


def _windows(plane: Floats, box: tuple[slice, ...], r: int) -> Floats:
    """Windows [h * w, (2r+1)^2] of `plane` [64, 64] around every pixel of the box; beyond the canvas is nothing."""
    rows, columns = (slice(max(side.start - r, 0), side.stop + r) for side in box)
    beyond = [(max(r - side.start, 0), max(side.stop + r - CANVAS, 0)) for side in box]
    padded = np.pad(plane[rows, columns], beyond)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (2 * r + 1, 2 * r + 1))
    return windows.reshape(-1, (2 * r + 1) ** 2)


_KINDS: Final = tuple(product(SHAPES, TEXTURES))


@cache
def _kernels(size: str) -> tuple[Floats, Floats]:
    """Of a size's sprites, as columns: coverage times brightness [side^2, kinds], and coverage [side^2, shapes]."""
    sprites = [sprite(shape, size, texture) for shape, texture in _KINDS]
    lit = np.stack([(alpha * shade).ravel() for alpha, shade in sprites], 1)
    return lit, np.stack([alpha.ravel() for alpha, _ in sprites[:: len(TEXTURES)]], 1)


@cache
def _energies(size: str, colour: str) -> Floats:
    """Squared norms of the painted sprites [kinds]."""
    return np.asarray([(_painted(Obj(shape, colour, texture, size, 0, 0)) ** 2).sum() for shape, texture in _KINDS])


@cache
def _painted_as(shape: str, size: str, texture: str, colour: str) -> Floats:
    alpha, shade = sprite(shape, size, texture)
    return np.asarray(alpha[..., None] * (shade[..., None] * RGB[colour] - BACKGROUND), np.float32)


def _painted(obj: Obj) -> Floats:
    """What the object adds to an empty canvas, [side, side, 3]."""
    return _painted_as(obj.shape, obj.size, obj.texture, obj.colour)


def _add(rest: Floats, obj: Obj, sign: int) -> None:
    view, inside = overlap(rest, obj)
    view += sign * _painted(obj)[inside]


_DIRECTIONS: Final = np.stack([RGB[c] / np.linalg.norm(RGB[c]) for c in COLOURS], 1)


def _colours(pixels: Floats) -> list[str]:
    """Up to three colours that pixels [n, 3] (less the background) vote for, each by its strength."""
    strength = np.linalg.norm(pixels, axis=1)
    votes = np.bincount((pixels @ _DIRECTIONS).argmax(1), strength, len(COLOURS))
    order = votes.argsort()[::-1][:3]
    return [COLOURS[i] for i in order if votes[i] >= 0.15 * votes.sum()]
