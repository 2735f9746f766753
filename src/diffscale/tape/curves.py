"""What best-of-k is expected to give, over all subsets of k candidates of a pool at once."""

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln


def best_of(scores: NDArray[np.float64], k: int, worth: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    """The mean over all k-subsets of a pool of the `worth` of the subset's candidate with the highest score, [...].

    `scores`, `worth`: [..., N], worth None for the scores themselves. Of equal scores each is chosen alike. It is the
    U-statistic of the maximum: the candidate of rank r from below, of N, is the best of C(r - 1, k - 1) of the C(N, k)
    subsets. Raises ValueError unless 1 <= k <= N.
    """
    n = scores.shape[-1]
    if not 1 <= k <= n:
        raise ValueError(f"There is no best of {k} among {n}.")
    order = scores.argsort(-1, kind="stable")
    ranked = np.take_along_axis(scores, order, -1)
    value = np.take_along_axis(scores if worth is None else worth, order, -1)
    ranks = np.arange(1, n + 1)
    usable = ranks >= k
    chances = np.zeros(n)
    above = ranks[usable]
    chances[usable] = np.exp(
        gammaln(above) - gammaln(above - k + 1) - gammaln(k) - gammaln(n + 1) + gammaln(n - k + 1) + gammaln(k + 1)
    )
    if worth is None:
        return np.asarray((ranked * chances).sum(-1))
    return np.asarray((_over_ties(ranked, value) * chances).sum(-1))


def _over_ties(ranked: NDArray[np.float64], worth: NDArray[np.float64]) -> NDArray[np.float64]:
    """`worth` [..., N], in which those of equal scores in `ranked`, which rises, have the mean of theirs."""
    shape = ranked.shape
    flat, values = ranked.reshape(-1, shape[-1]), worth.reshape(-1, shape[-1])
    first = np.concatenate([np.ones((len(flat), 1), bool), flat[:, 1:] != flat[:, :-1]], 1)
    group = first.ravel().cumsum() - 1
    means = np.bincount(group, values.ravel()) / np.bincount(group)
    return np.asarray(means[group].reshape(shape))


def candidates_worth(curve: NDArray[np.float64], value: float) -> float:
    """How many candidates random search needs for the mean `value`: `curve`[k - 1] is what it has with k of them.

    It is interpolated in log k; below the first the share of one candidate is not defined, so 1 is the least, and above
    the last it is infinite.
    """
    rising = np.maximum.accumulate(curve)
    if value > rising[-1] and not math.isclose(value, rising[-1]):  # whose shares are rounded
        return float("inf")
    return float(np.exp(np.interp(value, rising, np.log(np.arange(1, len(rising) + 1)))))
