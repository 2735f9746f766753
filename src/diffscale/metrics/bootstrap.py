"""Means with intervals."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Final

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
    return {"mean": mean, **_ends((data,), np.mean, share)}


def with_interval(value: Mapping[str, float], form: str = ".3f") -> str:
    """A `mean` with its `low` and `high` in brackets, each written by the format `form`."""
    mean, low, high = (format(value[name], form) for name in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def ratio(
    values: Sequence[float] | NDArray[np.float64], over: Sequence[float] | NDArray[np.float64], share: float = 0.95
) -> dict[str, float]:
    """As `interval`, of the mean of `values` [n] over that of `over` [n], which belong together in pairs.

    The mean of `over` is above 0; draws in which it is not count as if it were next to 0.

    Raises DiffscaleError if there is no value.
    """
    above, below = np.asarray(values, float), np.asarray(over, float)
    if not len(above):
        raise DiffscaleError("A ratio of means needs at least one pair of values.")

    def of_means(above: NDArray[np.float64], below: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
        return above.mean(axis) / np.maximum(below.mean(axis), least)

    least = 1e-6 * below.mean()
    mean = float(of_means(above, below))
    if len(above) == 1:
        return {"mean": mean, "low": mean, "high": mean}
    return {"mean": mean, **_ends((above, below), of_means, share)}


def _ends(data: tuple[NDArray[np.float64], ...], statistic: Callable[..., Any], share: float) -> dict[str, float]:
    """The ends of the bootstrap interval of a statistic of paired `data`."""
    drawn = bootstrap(
        data, statistic, n_resamples=_DRAWS, batch=max(1, BLOCK // len(data[0])), method="percentile", paired=True,
        rng=np.random.default_rng(0),
    ).bootstrap_distribution  # fmt: skip
    low, high = np.quantile(drawn, ((1 - share) / 2, (1 + share) / 2))
    return {"low": float(low), "high": float(high)}


def over_groups(values: Sequence[float] | NDArray[np.float64], groups: Sequence[Hashable]) -> NDArray[np.float64]:
    """The mean of each group, in the order they first come: repeats of a prompt are no independent samples."""
    by_group: dict[Hashable, list[float]] = {}
    for value, group in zip(values, groups, strict=True):
        by_group.setdefault(group, []).append(float(value))
    return np.array([np.mean(each) for each in by_group.values()])
