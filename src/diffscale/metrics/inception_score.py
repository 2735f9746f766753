"""Inception Score (Salimans et al. 2016): pictures that are each clearly of a class, and together of all."""

import warnings

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import log_softmax, softmax, xlogy
from torch import Tensor

from diffscale._util.errors import DiffscaleError
from diffscale.metrics.distances import matrix
from diffscale.metrics.frechet import FewSamples


def inception_score(outputs: Tensor | ArrayLike, splits: int = 10, probabilities: bool = False) -> tuple[float, float]:
    """Mean and standard deviation (of the population, as published) over `splits` of exp E KL(p(y|x) | p(y)).

    `outputs`: logits [N, classes], or with `probabilities` what a softmax made of them. Each score is from 1 to the
    number of classes, higher is better. Splits are runs of pictures in the order given, as in the authors' code
    (openai/improved-gan): shuffle what is sorted by class. A split of n pictures scores at most n, so that FewSamples
    warns where a split has fewer pictures than classes; fewer pictures than splits are scored one by one.

    Raises DiffscaleError for what are no probabilities, or no split at all.
    """
    rows = matrix(outputs)
    if splits < 1:
        raise DiffscaleError(f"The Inception Score takes at least one split, not {splits}.")
    if probabilities and (rows.min() < 0 or not np.allclose(rows.sum(1), 1, atol=1e-3)):
        raise DiffscaleError("These are no probabilities: each row must be positive and add up to 1.")
    classes = rows.shape[1]
    if len(rows) < splits * classes:
        warnings.warn(
            f"The Inception Score of {len(rows)} pictures in {splits} splits is biased downwards: a split of n cannot "
            f"score above n, use more than {splits * classes} for {classes} classes.",
            FewSamples,
            stacklevel=2,
        )
    splits = min(splits, len(rows))
    chances = rows if probabilities else softmax(rows, axis=1)
    # From logits the logarithm is exact also where the probability underflows.
    information = xlogy(rows, rows) if probabilities else chances * log_softmax(rows, axis=1)
    scores = []
    for i in range(splits):
        part = slice(i * len(rows) // splits, (i + 1) * len(rows) // splits)
        marginal = chances[part].mean(0)
        scores.append(np.exp(information[part].sum(1).mean() - xlogy(marginal, marginal).sum()))
    return float(np.mean(scores)), float(np.std(scores))
