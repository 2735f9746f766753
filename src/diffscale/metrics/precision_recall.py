"""Precision and recall of generated pictures (Kynkaanniemi et al. 2019), from k-nearest-neighbour manifolds."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from diffscale._util.errors import DiffscaleError
from diffscale.metrics.arrays import pair, squared_distances


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
    error = 2 * (centres.shape[1] + 2) * np.finfo(float).eps  # of rounding, in squared lengths
    # The nearest of all is the point itself.
    radii = np.concatenate(
        [np.partition(squares + both * error, k, axis=1)[:, k] for squares, both in squared_distances(centres, centres)]
    )
    inside = [(squares - both * error <= radii).any(1) for squares, both in squared_distances(points, centres)]
    return float(np.concatenate(inside).mean())


def recall(reference: Tensor | ArrayLike, generated: Tensor | ArrayLike, k: int = 3) -> float:
    """Share of `reference` [M, D] within the manifold of `generated` [N, D], in [0, 1]: how much of it is covered.

    Raises DiffscaleError where the generated have no k neighbours.
    """
    return precision(generated, reference, k)
