"""Frechet distance of gaussians: FID (Heusel et al. 2017), FD-DINOv2 (Stein et al. 2023), by the features given."""

import warnings

import numpy as np
from numpy.typing import NDArray

from diffscale._util.errors import DiffscaleError
from diffscale.metrics.statistics import Statistics


class FewSamples(UserWarning):
    """There are too few pictures for what a metric estimates."""


def fid(generated: Statistics, reference: Statistics) -> float:
    """Frechet distance of the gaussians fitted to two sets, at least 0; symmetric.

    Warns with FewSamples where a set has no more pictures than dimensions; the covariance of one picture is zero.
    Raises DiffscaleError for statistics of two extractors.
    """
    if (generated.extractor, len(generated.mean)) != (reference.extractor, len(reference.mean)):
        raise DiffscaleError(
            f"Statistics of {generated.extractor} ({len(generated.mean)} dimensions) and of {reference.extractor} "
            f"({len(reference.mean)}) do not compare: make both with one extractor."
        )
    fewest, dimensions = min(generated.n, reference.n), len(reference.mean)
    if fewest <= dimensions:
        warnings.warn(
            f"The Frechet distance of {generated.n} to {reference.n} pictures is biased upwards: "
            f"{fewest} do not determine a covariance of {dimensions} dimensions, use more than {dimensions}.",
            FewSamples,
            stacklevel=2,
        )
    return frechet_distance(generated.mean, generated.covariance, reference.mean, reference.covariance)


def frechet_distance(
    mean_a: NDArray[np.float64],
    covariance_a: NDArray[np.float64],
    mean_b: NDArray[np.float64],
    covariance_b: NDArray[np.float64],
) -> float:
    """|mean_a - mean_b|^2 + tr(A + B - 2 (A B)^1/2) of means [D] and covariances [D, D], float64, at least 0.

    With A = L M and L, M transposes of each other, and B likewise, tr (A B)^1/2 is the sum of the singular values of
    the product of the roots. Symmetric eigenvalues and singular values are found to full precision and cannot turn
    negative or complex; the published square root of the unsymmetric A B does, wherever a covariance is singular.
    """
    cross = np.linalg.svd(root(covariance_a).T @ root(covariance_b), compute_uv=False).sum()
    apart = float(np.square(mean_a - mean_b).sum())
    return max(0.0, apart + float(np.trace(covariance_a) + np.trace(covariance_b) - 2 * cross))


def root(covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    """L [D, rank] with L L^T = covariance."""
    values, vectors = np.linalg.eigh(covariance)
    # What is below the rounding error of the largest is zero or worse; its root would be a million times the error.
    positive = values > max(values[-1], 0.0) * len(values) * np.finfo(float).eps
    return vectors[:, positive] * np.sqrt(values[positive])
