"""The exact judge of Shapes: does a picture show what was asked for, category by category.

All formulas are ours, in the spirit of T2I-CompBench (Huang et al. 2023): partial credit for objects with some of
the said attributes on the same object, half of the spatial score for the relation, half of numeracy for exact counts.
Attributes that the description leaves open are free; objects that it does not speak of cost `_EXTRA` of the score each.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from diffscale_shapes.reading import Reading, read_picture
from diffscale_shapes.render import BACKGROUND, render
from diffscale_shapes.scenes import CANVAS, Description, Obj, related

_EXTRA: Final = 0.15


@dataclass(frozen=True)
class Verdict:
    """`score` of the description's category and `cleanliness`, both in [0, 1], and what was read."""

    score: float
    cleanliness: float
    readings: tuple[Reading, ...]


def judge_image(picture: NDArray[np.float32], description: Description) -> Verdict:
    """Judge an RGB picture [64, 64, 3] in [0, 1] by a description.

    colour, shape, texture: mean over specs of the share of said attributes (the shape among them) that its object has,
    objects assigned to specs one to one for the best total. spatial, complex: a half (spatial) or a third (complex) of
    the score is the relation, the rest that mean; where the relation holds it is worth the product of the two objects'
    shares (the mean over pairs, if a spec has a count), where it does not, nothing. Of assignments with equal totals
    the one in which the relation holds counts. numeracy: mean over specs of 0.5 if any object has all that is said and
    0.5 if exactly `count` do. All are multiplied by 0.85 for each object too many; in numeracy, where a wrong count
    costs already, for each that no spec admits.

    Free are: a colour, texture or size that a spec does not say; places, but for the sign and the dominance of the
    offset that a relation names (`related`); the order of objects. Never free is the number of objects: "a red circle"
    is one red circle and nothing else. Raises ValueError as `read_picture` does.
    """
    readings = read_picture(picture)
    score = score_objects([reading.obj for reading in readings], description)
    return Verdict(score, cleanliness(picture, readings), tuple(readings))


def score_objects(objects: list[Obj], description: Description) -> float:
    """The score in [0, 1] that `judge_image` gives a picture of exactly these objects, whatever their order."""
    return (_numeracy if description.category == "numeracy" else _binding)(description, objects)


def cleanliness(picture: NDArray[np.float32], readings: Sequence[Reading]) -> float:
    """1 - |picture - redrawn| / |redrawn - background|, at least 0: 1 for what the renderer could have drawn."""
    redrawn = render([reading.obj for reading in reversed(readings)])
    off = float(np.linalg.norm(picture - redrawn))
    # An empty picture is compared with a small object's energy, so that it can be clean or dirty too.
    scale = max(float(np.linalg.norm(redrawn - BACKGROUND)), 5.0)
    return max(0.0, 1 - off / scale)


def judge_images(images: Tensor, descriptions: Sequence[Description]) -> Tensor:
    """Scores float64 [B] of pictures [B, 3, H, W] in [0, 1]; sizes other than 64x64 are resized, antialiased."""
    images = images.detach().float().cpu()
    if images.shape[-2:] != (CANVAS, CANVAS):
        images = F.interpolate(images, (CANVAS, CANVAS), mode="bicubic", antialias=True).clamp(0, 1)
    pictures = images.permute(0, 2, 3, 1).numpy()
    scores = [judge_image(picture, meant).score for picture, meant in zip(pictures, descriptions, strict=True)]
    return torch.tensor(scores, dtype=torch.float64)


def _binding(description: Description, objects: list[Obj]) -> float:
    if not objects:
        return 0.0
    row_of = np.repeat(np.arange(len(description.specs)), [spec.count for spec in description.specs])
    # Columns beyond the objects stand for objects that are missing: nothing they have is right.
    here, places = len(objects), max(len(row_of), len(objects))
    shares = np.zeros((len(row_of), places))
    shares[:, :here] = np.array([[spec.share(obj) for obj in objects] for spec in description.specs])[row_of]
    if relation := description.relation if len(description.specs) > 1 else None:
        holds = np.zeros((places, places))
        holds[:here, :here] = [[related(a, b, relation) for b in objects] for a in objects]
        total, related_score = _best_related(shares, holds, row_of)
        weight = 1 / 2 if description.category == "spatial" else 1 / 3
        score = (1 - weight) * total / len(row_of) + weight * related_score
    else:
        score = float(shares[linear_sum_assignment(shares, maximize=True)].mean())
    return score * (1 - _EXTRA) ** max(len(objects) - len(row_of), 0)


def _best_related(
    shares: NDArray[np.float64], holds: NDArray[np.float64], row_of: NDArray[np.int_]
) -> tuple[float, float]:
    """The best assignment's sum of shares and its relation's worth in [0, 1].

    shares [rows, columns], holds [columns, columns], row_of [rows] the spec of a row. More shares go before more of the
    relation, so that a relation is never gained by calling an object what it is not. With the objects of the second
    spec fixed, the worth of each first object is known and the rest is a linear assignment.
    """
    first, second, others = np.flatnonzero(row_of == 0), np.flatnonzero(row_of == 1), np.flatnonzero(row_of != 1)
    found = []
    for chosen in combinations(range(shares.shape[1]), len(second)):
        of_second = shares[second[0], chosen]
        gains = np.zeros_like(shares)
        gains[first] = shares[first] * (holds[:, chosen] @ of_second) / (len(first) * len(second))
        free = np.delete(np.arange(shares.shape[1]), chosen)
        here = np.ix_(others, free)
        # 1e-3 stays below the least step between sums of shares, a twelfth.
        matched = linear_sum_assignment(shares[here] + 1e-3 * gains[here], maximize=True)
        total = float(shares[here][matched].sum() + of_second.sum())
        found.append((round(total, 9), float(gains[here][matched].sum())))
    return max(found)


def _numeracy(description: Description, objects: list[Obj]) -> float:
    specs = description.specs
    admits = np.array([[spec.admits(obj) for obj in objects] for spec in specs], bool).reshape(len(specs), len(objects))
    # An object that two specs admit counts for one that lacks it, as in "two circles and a red circle"; when too few
    # are there, for the one that says more.
    row_of = np.repeat(np.arange(len(specs)), [spec.count for spec in specs])
    values = admits * np.array([[1 + 0.01 * len(spec.stated)] for spec in specs])
    rows, columns = linear_sum_assignment(values[row_of], maximize=True)
    taken = admits[row_of[rows], columns]
    counts = np.bincount(row_of[rows[taken]], minlength=len(specs))
    surplus = np.setdiff1d(np.flatnonzero(admits.any(0)), columns[taken])
    counts += np.bincount(admits[:, surplus].argmax(0), minlength=len(specs))
    each = [0.5 * (n > 0) + 0.5 * (n == spec.count) for n, spec in zip(counts, specs, strict=True)]
    return float(np.mean(each)) * (1 - _EXTRA) ** int((~admits.any(0)).sum())
