"""The exact judge of Shapes: does a picture show what was asked for, category by category.

All formulas are ours, in the spirit of T2I-CompBench (Huang et al. 2023): partial credit for objects with some of
the said attributes on the same object, half of the spatial score for the relation, half of numeracy for exact counts.
Attributes that the description leaves open are free; objects that it does not speak of cost `_EXTRA` of the score each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from diffscale.shapes.reading import Reading, read_picture, redraw
from diffscale.shapes.render import BACKGROUND
from diffscale.shapes.scenes import CANVAS, Description, Obj, Spec, related

_EXTRA: Final = 0.15


@dataclass(frozen=True)
class Verdict:
    """`score` of the description's category and `cleanliness`, both in [0, 1], and what was read."""

    score: float
    cleanliness: float
    readings: tuple[Reading, ...]


def judge(picture: NDArray[np.float32], description: Description) -> Verdict:
    """Judge an RGB picture [64, 64, 3] in [0, 1] by a description.

    colour, shape, texture: mean over specs of the share of said attributes (the shape among them) that its object has,
    objects assigned to specs one to one for the best total. spatial, complex: a half (spatial) or a third (complex) of
    the score is the relation, worth the product of the two objects' shares, the rest that mean. numeracy: per spec,
    0.5 if any object has all that is said and 0.5 if exactly `count` do. Raises ValueError as `read_picture` does.
    """
    readings = read_picture(picture)
    objects = [reading.obj for reading in readings]
    score = (_numeracy if description.category == "numeracy" else _binding)(description, objects)
    return Verdict(score, cleanliness(picture, readings), tuple(readings))


def cleanliness(picture: NDArray[np.float32], readings: Sequence[Reading]) -> float:
    """1 - |picture - redrawn| / |redrawn - background|, at least 0: 1 for what the renderer could have drawn."""
    redrawn = redraw(readings)
    off = float(np.linalg.norm(picture - redrawn))
    # An empty picture is compared with a small object's energy, so that it can be clean or dirty too.
    scale = max(float(np.linalg.norm(redrawn - BACKGROUND)), 5.0)
    return max(0.0, 1 - off / scale)


def judge_batch(images: Tensor, descriptions: Sequence[Description]) -> Tensor:
    """Scores float64 [B] of pictures [B, 3, H, W] in [0, 1]; sizes other than 64x64 are resized, antialiased."""
    images = images.detach().float().cpu()
    if images.shape[-2:] != (CANVAS, CANVAS):
        images = F.interpolate(images, (CANVAS, CANVAS), mode="bicubic", antialias=True).clamp(0, 1)
    pictures = images.permute(0, 2, 3, 1).numpy()
    scores = [judge(picture, meant).score for picture, meant in zip(pictures, descriptions, strict=True)]
    return torch.tensor(scores, dtype=torch.float64)


def _share(spec: Spec, obj: Obj) -> float:
    """Share of the said attributes that the object has."""
    said = [
        (spec.shape, obj.shape),
        (spec.colour, obj.colour),
        (spec.texture, obj.texture),
        (spec.size, obj.size),
    ]
    hits = [wanted == has for wanted, has in said if wanted is not None]
    return sum(hits) / len(hits)


def _binding(description: Description, objects: list[Obj]) -> float:
    specs = [spec for spec in description.specs for _ in range(spec.count)]
    if not objects:
        return 0.0
    shares = np.array([[_share(spec, obj) for obj in objects] for spec in specs])
    # Among assignments of equal shares prefer one in which the relation holds: two alike objects may be swapped.
    bonus = np.zeros_like(shares)
    if description.relation and len(specs) > 1:
        for j, obj in enumerate(objects):
            bonus[0, j] = sum(related(obj, other, description.relation) for other in objects)
            bonus[1, j] = sum(related(other, obj, description.relation) for other in objects)
    rows, columns = linear_sum_assignment(shares + 1e-6 * bonus, maximize=True)
    credit, match = np.zeros(len(specs)), dict(zip(rows.tolist(), columns.tolist(), strict=True))
    for row, column in match.items():
        credit[row] = shares[row, column]
    score = float(credit.mean())
    if description.relation:
        holds = 0 in match and 1 in match and related(objects[match[0]], objects[match[1]], description.relation)
        weight = 1 / 2 if description.category == "spatial" else 1 / 3
        score = (1 - weight) * score + weight * holds * float(credit[0] * credit[1])
    return score * (1 - _EXTRA) ** max(len(objects) - len(specs), 0)


def _numeracy(description: Description, objects: list[Obj]) -> float:
    counts = [sum(spec.admits(obj) for obj in objects) for spec in description.specs]
    each = [0.5 * (n > 0) + 0.5 * (n == spec.count) for n, spec in zip(counts, description.specs, strict=True)]
    strangers = sum(not any(spec.admits(obj) for spec in description.specs) for obj in objects)
    return float(np.mean(each)) * (1 - _EXTRA) ** strangers
