"""CMMD (Jayasumana et al. 2024): maximum mean discrepancy of CLIP embeddings under a gaussian kernel."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from diffscale.metrics.arrays import pair, squared_distances

SIGMA: Final = 10.0
SCALE: Final = 1000.0


def cmmd(reference: Tensor | ArrayLike, generated: Tensor | ArrayLike) -> float:
    """1000 MMD^2 of `reference` [M, D] and `generated` [N, D] with the kernel exp(-|x - y|^2 / (2 * 10^2)).

    As in the authors' code (google-research/cmmd): embeddings are made of unit length first, and the estimator is
    the biased one, with the pairs of a picture with itself, so that it is never negative and 0 for equal sets.
    """
    x, y = map(_unit, pair(reference, generated))
    return SCALE * max(0.0, _kernel(x, x) + _kernel(y, y) - 2 * _kernel(x, y))


def _unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1)


def _kernel(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Mean of kernel - 1 over all pairs: unit vectors are so near for this kernel that it is almost 1 everywhere."""
    total = sum(float(np.expm1(squares / (-2 * SIGMA**2)).sum()) for squares, _ in squared_distances(x, y))
    return total / (len(x) * len(y))
