"""Precision and recall of generated pictures (Kynkaanniemi et al. 2019), from k-nearest-neighbour manifolds."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from diffscale._util.errors import DiffscaleError
from diffscale.metrics.arrays import BLOCK, pair


def precision(reference: Tensor | ArrayLike, generated: Tensor | ArrayLike, k: int = 3) -> float:
    """Share of `generated` [N, D] within the manifold of `reference` [M, D], in [0, 1]: how real they look.

    The manifold is the union of balls around the reference's features, each as wide as the distance to its k-th
    neighbour. A distance equal to a radius but for rounding lies inside, as one that is equal does in the authors' code
    (kynkaat/improved-precision-and-recall-metric). Raises DiffscaleError where the reference has no k neighbours.
    """
    centres, points = pair(reference, generated)
    if len(centres) <= k:
        raise DiffscaleError(
            f"Precision and recall look at {k} neighbours: give more than {k} pictures in each set, not {len(centres)}."
        )
    # Rounded, so that float32 features stay exact; then lengths are of the size of distances, and nothing cancels.
    shift = centres.mean(0).astype(np.float32)
    centres, points = centres - shift, points - shift
    # The nearest of all is the point itself.
    radii = np.concatenate(
        [np.partition(squares + error, k, axis=1)[:, k] for squares, error in _distances(centres, centres)]
    )
    inside = [(squares - error <= radii).any(1) for squares, error in _distances(points, centres)]
    return float(np.concatenate(inside).mean())


def recall(reference: Tensor | ArrayLike, generated: Tensor | ArrayLike, k: int = 3) -> float:
    """Share of `reference` [M, D] within the manifold of `generated` [N, D], in [0, 1]: how much of it is covered.

    Raises DiffscaleError where the generated have no k neighbours.
    """
    return precision(generated, reference, k)


def _distances(
    rows: NDArray[np.float64], columns: NDArray[np.float64]
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Squared distances [b, len(columns)] of a block of rows at a time, and what rounding may have done to them."""
    lengths = np.square(columns).sum(1)
    step = max(1, BLOCK // len(columns))
    for start in range(0, len(rows), step):
        block = rows[start : start + step]
        both = np.square(block).sum(1)[:, None] + lengths
        squares = both - 2 * block @ columns.T
        yield squares, both * (2 * (block.shape[1] + 2) * np.finfo(float).eps)
