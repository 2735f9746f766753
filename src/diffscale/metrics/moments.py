"""Mean and covariance of features, one batch at a time, in float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from diffscale._util.errors import DiffscaleError
from diffscale.metrics.arrays import matrix

_ROWS: Final = 4096  # rows that are float64 at once


class Moments:
    """Streaming mean and covariance by the pairwise update of Chan, Golub and LeVeque (1979).

    It adds up deviations from the mean, never squares of the features themselves, so that nothing cancels where the
    mean is large; any split into batches gives the same but for rounding.
    """

    def __init__(self) -> None:
        self.n = 0
        self._mean: NDArray[np.float64] = np.zeros(0)
        self._scatter: NDArray[np.float64] = np.zeros((0, 0))

    def update(self, features: Tensor | ArrayLike) -> None:
        """Take in a batch [B, D]; raises DiffscaleError for another D than before and for what is not finite."""
        rows = matrix(features)
        n, mean = len(rows), rows.mean(0)
        if not self.n:
            self._mean, self._scatter = np.zeros(rows.shape[1]), np.zeros((rows.shape[1],) * 2)
        if mean.shape != self._mean.shape:
            raise DiffscaleError(f"Features of {len(self._mean)} dimensions were followed by some of {len(mean)}.")
        rows = rows - mean
        delta = mean - self._mean
        total = self.n + n
        self._scatter += rows.T @ rows + np.outer(delta, delta) * (self.n * n / total)
        self._mean += delta * (n / total)
        self.n = total

    @property
    def mean(self) -> NDArray[np.float64]:
        """[D]; empty before the first batch."""
        return self._mean.copy()

    @property
    def covariance(self) -> NDArray[np.float64]:
        """[D, D], divided by n - 1; zero for a single picture, which does not vary."""
        return self._scatter / max(self.n - 1, 1)


@dataclass(frozen=True)
class Statistics:
    """What is known of a set of pictures.

    `extractor`: name of the network that made the features. `n`: pictures. `mean` [D] and `covariance` [D, D] (divided
    by n - 1), float64. `features`: float32 [n, D], None where they were not kept.
    """

    extractor: str
    n: int
    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]
    features: NDArray[np.float32] | None = None

    @classmethod
    def of(cls, features: NDArray[np.float32], extractor: str) -> Statistics:
        """The statistics of `features` [N, D], which are kept; raises DiffscaleError as `Moments.update` does."""
        moments = Moments()
        for start in range(0, max(len(features), 1), _ROWS):
            moments.update(features[start : start + _ROWS])
        return cls(extractor, moments.n, moments.mean, moments.covariance, features)
