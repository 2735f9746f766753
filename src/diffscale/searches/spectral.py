"""Spectral evolution search: the cross-entropy method on the low frequencies of the noise."""

from functools import partial

import torch
from pydantic import PositiveInt
from torch import Tensor

from diffscale.searches.ask_tell import ask_tell
from diffscale.searches.subspaces import Subspace, low_band
from diffscale.types import Environment, PositiveShare, Search, State, search_traits


@search_traits(anytime=True)
def spectral(
    env: Environment,
    n: PositiveInt = 8,
    elites: PositiveShare = 0.25,
    levels: PositiveInt = 2,
    smoothing: PositiveShare = 0.5,
) -> Search:
    """Cross-entropy method on the noise's low wavelet band, its high band fixed. Price: candidates * steps.

    SES (2026, arXiv 2602.03208): low frequencies of the noise decide most of a picture. The low band is that of
    `subspaces.low_band`, of a Haar transform of `levels` levels, in which its candidates are drawn from a normal law
    with a mean and a standard deviation of each coordinate, at first those of noise. After each `n` candidates both
    move by the share `smoothing` to those of the best share `elites` of the n. Candidates are brought to the norm that
    the first noise's low band has, so that all noises stay typical (ours), and the first one is the plain sample of
    the first noise. The paper's own settings were not to be had: the defaults are ours.
    """
    first = env.prior(1)
    band = low_band(env, first, levels)
    make = partial(CrossEntropy, env, partial(_white, env, first, band, n), elites, smoothing)
    yield from ask_tell(env, first, band, make, n)


class CrossEntropy:
    """The optimiser: see `spectral`. `draw` gives a generation of normal points, `first` [1, d] is the first point."""

    def __init__(self, env: Environment, draw: partial[Tensor], elites: float, smoothing: float, first: Tensor) -> None:
        self.env, self.draw, self.elites, self.smoothing, self.first = env, draw, elites, smoothing, first
        self.mean, self.std, self.asked = torch.zeros_like(first), torch.ones_like(first), False

    def ask(self, n: int) -> Tensor:
        """Draws from the law as it is, all of the first point's norm; the first point itself is the very first."""
        drawn = self.mean + self.std * self.draw()[:n]  # of all, so that a last generation is a part of a whole one
        drawn = drawn / drawn.norm(dim=1, keepdim=True) * self.first.norm()
        if not self.asked:
            drawn[0] = self.first[0]
        self.asked = True
        return drawn

    def tell(self, points: Tensor, scores: Tensor) -> None:
        """Dropped candidates are forgotten; the law moves towards the elites."""
        values = self.env.value(scores)
        usable = int(values.isfinite().sum())
        best = points[values.topk(min(usable, max(1, round(self.elites * len(points))))).indices]
        if len(best):
            self.mean = self.mean.lerp(best.mean(0, keepdim=True), self.smoothing)
            self.std = self.std.lerp(best.std(0, correction=0, keepdim=True), self.smoothing)


def _white(env: Environment, first: State, band: Subspace, n: int) -> Tensor:
    return band.project(env.noise(first.repeat(n)).flatten(1).double().cpu())
