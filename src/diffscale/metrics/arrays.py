"""Features as every metric takes them."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from diffscale._util.errors import DiffscaleError

BLOCK = 2**23
"""Most float64 numbers that a metric holds at once of what grows with the square of the number of pictures: 64 MiB."""


def matrix(features: Tensor | ArrayLike) -> NDArray[np.float64]:
    """Features [N, D] of any kind and device as float64 on the CPU.

    Raises DiffscaleError if they have another shape, are none at all or are not finite.
    """
    if isinstance(features, Tensor):
        features = features.detach().cpu().double().numpy()
    rows = np.asarray(features, np.float64)
    if rows.ndim != 2 or 0 in rows.shape:
        raise DiffscaleError(f"A metric takes features of shape [pictures, dimensions], not {list(rows.shape)}.")
    if not np.isfinite(rows).all():
        raise DiffscaleError("A metric takes finite features: leave out the pictures whose features are not.")
    return rows


def pair(first: Tensor | ArrayLike, second: Tensor | ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Two sets of features as `matrix` gives them; raises DiffscaleError if they are of unequal dimension."""
    a, b = matrix(first), matrix(second)
    if a.shape[1] != b.shape[1]:
        raise DiffscaleError(
            f"Features of {a.shape[1]} and of {b.shape[1]} dimensions do not compare: make both with one extractor."
        )
    return a, b
