"""Features as metrics take them, and metrics by distances between them: precision, recall and CMMD."""

from collections.abc import Hashable, Iterator, Sequence
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from diffscale._util.errors import DiffscaleError

BLOCK = 2**23
"""Most float64 numbers that a metric holds at once of what grows with the square of the number of pictures: 64 MiB."""

SIGMA: Final = 10.0
SCALE: Final = 1000.0


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


def precision(reference: Tensor | ArrayLike, generated: Tensor | ArrayLike, k: int = 3) -> float:
    """Share of `generated` [N, D] within the manifold of `reference` [M, D], in [0, 1]: how real they look.

    The manifold is the union of balls around the reference's features, each as wide as the distance to its k-th
    neighbour (Kynkaanniemi et al. 2019). A distance equal to a radius but for rounding lies inside, as one that is
    equal does in the authors' code (kynkaat/improved-precision-and-recall-metric). Raises DiffscaleError where the
    reference has no k neighbours.
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


def diversity(features: Tensor | ArrayLike, prompts: Sequence[Hashable]) -> float | None:
    """1 less the mean cosine of two pictures of the same one of `prompts`, by `features` [N, D]; None without two."""
    unit = _unit(matrix(features))
    own = ([i for i, each in enumerate(prompts) if each == prompt] for prompt in dict.fromkeys(prompts))
    cosines = np.concatenate([(unit[rows] @ unit[rows].T)[np.triu_indices(len(rows), 1)] for rows in own])
    return float(1 - cosines.mean()) if len(cosines) else None


def cmmd(reference: Tensor | ArrayLike, generated: Tensor | ArrayLike) -> float:
    """1000 MMD^2 of `reference` [M, D] and `generated` [N, D] with the kernel exp(-|x - y|^2 / (2 * 10^2)).

    CMMD (Jayasumana et al. 2024) is the maximum mean discrepancy of CLIP embeddings under a gaussian kernel.
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
