"""What more candidates of a prompt can be expected to bring, told from the scores of all prompts of a run.

Scores become normal scores (van der Waerden 1952): each is put in the place that its rank among all scores of the run
has in a standard normal distribution. So a ceiling that a verifier's scores have in common, or a highest score that
many pictures reach, is learned from the run. On this scale a prompt's scores are taken as draws from a normal
distribution whose mean and variance are unknown. Prompts are alike: their means and variances come from one
normal-inverse-gamma distribution, the one under which all scores are likeliest (empirical Bayes), so that a few
candidates of each prompt are enough. The likelihood, unlike moments, does not mind that how many candidates a prompt
has depends on their scores.

The posterior is that of Murphy, "Conjugate Bayesian analysis of the Gaussian distribution" (2007), section 6; one more
candidate is then a Student t. Several more have their mean and variance in common, so that the best of m is less than
the best of m independent draws of this t: these two unknowns are integrated over.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.polynomial.hermite_e import hermegauss
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import gammaincinv, gammaln, ndtr, ndtri

Numbers = NDArray[np.float64]

_POINTS: Final = 32  # of the quadratures over standard deviations and over scores, and half as many over means
# Mean, log of weight, of shape and of variance of the prior. Bounded, because a few prompts, or prompts that are all
# alike, leave some of them open.
_START: Final = (0.0, 0.0, np.log(3.0), -0.7)
_BOUNDS: Final = ((-5.0, 5.0), *((np.log(low), np.log(high)) for low, high in ((0.01, 100), (1, 100), (1e-6, 20))))


@dataclass(frozen=True)
class Moments:
    """Of each prompt's scores: how many there are, their mean, and the sum of squared distances to it."""

    count: Numbers
    mean: Numbers
    squares: Numbers

    @classmethod
    def of(cls, scores: Sequence[Numbers]) -> "Moments":
        """Those of `scores`, an array for each prompt, none empty."""
        means = np.array([each.mean() for each in scores])
        squares = [((each - mean) ** 2).sum() for each, mean in zip(scores, means, strict=True)]
        return cls(np.array([len(each) for each in scores], float), means, np.array(squares))


@dataclass(frozen=True)
class Beliefs:
    """Normal-inverse-gamma distributions: the variance is inverse gamma of `shape` and `scale`, and given that, the
    mean is normal around `mean` with the variance divided by `weight`. Numbers, or arrays with one for each prompt."""

    mean: Numbers
    weight: Numbers
    shape: Numbers
    scale: Numbers

    def given(self, scores: Moments) -> "Beliefs":
        """These beliefs after `scores` were seen."""
        weight = self.weight + scores.count
        apart = self.weight * scores.count * (scores.mean - self.mean) ** 2 / (2 * weight)
        return Beliefs(
            (self.weight * self.mean + scores.count * scores.mean) / weight,
            weight,
            self.shape + scores.count / 2,
            self.scale + scores.squares / 2 + apart,
        )

    def chance_above(self, more: Numbers, levels: Numbers) -> Numbers:
        """The chance that the best of `more` [prompts] candidates exceeds each of `levels` [prompts, n], alike."""
        quantiles = (np.arange(_POINTS) + 0.5) / _POINTS
        deviations = np.sqrt(self.scale[:, None] / gammaincinv(self.shape[:, None], quantiles))[..., None]
        standard = (levels - self.mean[:, None])[:, None] / deviations
        points, weights = hermegauss(_POINTS // 2)
        below = np.zeros_like(standard)
        for weight, point in zip(weights / weights.sum(), points, strict=True):
            below += weight * ndtr(standard - point / np.sqrt(self.weight)[:, None, None]) ** more[:, None, None]
        return np.asarray(np.clip(1 - below.mean(1), 0, 1))


def prior_of(scores: Moments) -> Beliefs:
    """What is believed of a prompt before its scores, of about unit variance, are seen: what makes all of them
    likeliest."""

    def beliefs(at: Numbers) -> Beliefs:
        return Beliefs(at[0], np.exp(at[1]), np.exp(at[2]), np.exp(at[2] + at[3]))

    def surprise(at: Numbers) -> float:
        before, after = beliefs(at), beliefs(at).given(scores)
        likelihood = (
            gammaln(after.shape) - gammaln(before.shape) + before.shape * np.log(before.scale)
            - after.shape * np.log(after.scale) + np.log(before.weight / after.weight) / 2
        )  # fmt: skip
        return -float(likelihood.sum())

    return beliefs(minimize(surprise, np.array(_START), method="L-BFGS-B", bounds=_BOUNDS).x)


def outlook(scores: Sequence[Numbers], more: Numbers, most: float = np.inf) -> tuple[Numbers, Numbers]:
    """For each prompt, what `more` further candidates are expected to bring: the chance that one is better than its
    best, and by how much the best rises on average, both [prompts].

    `scores`: an array for each prompt, none empty. Scores above `most`, or above the highest of the run, of which
    nothing is known, count as these. The rise is the expected improvement of Jones, Schonlau and Welch, "Efficient
    Global Optimization of Expensive Black-Box Functions" (1998), for several candidates of one unknown distribution.
    """
    pooled, ends = np.concatenate(scores), np.cumsum([len(each) for each in scores])[:-1]
    known, where, counts = np.unique(pooled, return_inverse=True, return_counts=True)
    below = np.cumsum(counts)
    # Equal scores share their mean rank; but a level is exceeded by what is above all that is equal to it.
    seen = Moments.of(np.split(ndtri((below - counts / 2) / len(pooled))[where], ends))
    places = ndtri(below / (len(pooled) + 1))
    best = np.array([each.max() for each in scores])
    span = np.maximum(min(known[-1], most) - best, 0)
    levels = best[:, None] + span[:, None] * np.concatenate([[0], (np.arange(_POINTS) + 0.5) / _POINTS])
    chances = prior_of(seen).given(seen).chance_above(more, np.interp(levels, known, places))
    return chances[:, 0], chances[:, 1:].mean(1) * span
