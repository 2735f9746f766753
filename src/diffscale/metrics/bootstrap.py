"""Means with intervals."""

from collections.abc import Hashable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap

from diffscale._util.errors import DiffscaleError
from diffscale.metrics.distances import BLOCK

_DRAWS: Final = 4000


def interval(values: Sequence[float] | NDArray[np.float64], share: float = 0.95) -> dict[str, float]:
    """`mean` of the values, `low` and `high` of its bootstrap interval; that of one value is the value itself.

    `share`: how often such an interval is to hold the true mean.

    Raises DiffscaleError if there is no value.
    """
    data = np.asarray(values, float)
    if not len(data):
        raise DiffscaleError("A mean needs at least one value.")
    mean = float(data.mean())
    if len(data) == 1:  # scipy refuses it
        return {"mean": mean, "low": mean, "high": mean}
    means = bootstrap(
        (data,), np.mean, n_resamples=_DRAWS, batch=max(1, BLOCK // len(data)), method="percentile",
        rng=np.random.default_rng(0),
    ).bootstrap_distribution  # fmt: skip
    low, high = np.quantile(means, ((1 - share) / 2, (1 + share) / 2))
    return {"mean": mean, "low": float(low), "high": float(high)}


def over_groups(values: Sequence[float] | NDArray[np.float64], groups: Sequence[Hashable]) -> NDArray[np.float64]:
    """The mean of each group, in the order they first come: repeats of a prompt are no independent samples."""
    by_group: dict[Hashable, list[float]] = {}
    for value, group in zip(values, groups, strict=True):
        by_group.setdefault(group, []).append(float(value))
    return np.array([np.mean(each) for each in by_group.values()])
