"""Features as every metric takes them, and distances between them."""

from __future__ import annotations

from collections.abc import Iterator

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


def squared_distances(
    rows: NDArray[np.float64], columns: NDArray[np.float64]
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Squared distances [b, len(columns)] of a block of rows at a time, and |row|^2 + |column|^2 for each.

    By a matrix product, which is many times faster than scipy's cdist where there are thousands of dimensions; the
    squares are exact but for some rounding errors of the second.
    """
    lengths = np.square(columns).sum(1)
    step = max(1, BLOCK // len(columns))
    for start in range(0, len(rows), step):
        block = rows[start : start + step]
        both = np.square(block).sum(1)[:, None] + lengths
        yield both - 2 * block @ columns.T, both
