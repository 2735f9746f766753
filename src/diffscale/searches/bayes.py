"""Bayesian optimisation of the noise in a random subspace, within a trust region."""

import warnings
from functools import partial

import torch
from pydantic import PositiveInt
from torch import Tensor

from diffscale._util.errors import DiffscaleError, explained
from diffscale.searches.ask_tell import ask_tell
from diffscale.searches.subspaces import random_subspace
from diffscale.types import Environment, Search

_EDGE = 3.0  # the box in standard deviations of a noise's coordinate
_LEAST, _FIRST, _MOST = 0.5**7, 0.8, 1.6  # side of the trust region, as a share of the box
_SUCCESSES = 3  # asks in a row that improve, before it doubles
_TRIED = 512  # points that a Thompson draw chooses from


def bayes(
    env: Environment, dimensions: PositiveInt = 8, n: PositiveInt = 4, initial: PositiveInt | None = None
) -> Search:
    """Gaussian process over a random subspace of the noise, in a trust region. Price: candidates * steps.

    Thompson draws as in TuRBO-1 (Eriksson et al. 2019, arXiv 1910.01739), with botorch, on random coordinates (Wang et
    al. 2016, arXiv 1301.1942). `dimensions` of the subspace; `n`: candidates at a time; `initial`: random candidates
    before the first model, as many times n as are enough for it, by default for twice the dimensions; the first plain
    sample is among them. Needs `pip install 'diffscale[bo]'`.

    Raises DiffscaleError if botorch is not installed, and for an `initial` below n.
    """
    if initial is not None and initial < n:
        raise DiffscaleError(f"The search bayes asks for n={n} at a time, the initial={initial} too: give n or more.")
    initial = 2 * dimensions if initial is None else initial
    with explained("The search bayes needs botorch: pip install 'diffscale[bo]'.", ImportError):
        import botorch  # noqa: F401
    first = env.prior(1)
    yield from ask_tell(env, first, random_subspace(env, first, dimensions), partial(TrustRegion, env, initial), n)


class TrustRegion:
    """The optimiser: see `bayes`. `first` [1, d] is the first point."""

    def __init__(self, env: Environment, initial: int, first: Tensor) -> None:
        self.env, self.initial, self.first = env, initial, first
        self.points, self.answers, self.scores = first[:0], first[:0, 0], first[:0, 0]
        self.side, self.successes, self.failures = _FIRST, 0, 0

    def ask(self, n: int) -> Tensor:
        """The first point and random ones, then Thompson draws."""
        asked = len(self.points)
        if asked >= self.initial and len(self.scores) > 1 and self.scores.std() > 0:
            return self._thompson(n)
        drawn = torch.special.ndtri(self.env.uniform(n * self.first.shape[1])).view(n, -1).clamp(-_EDGE, _EDGE)
        return torch.cat([self.first, drawn])[:n] if not asked else drawn

    def tell(self, points: Tensor, scores: Tensor) -> None:
        """Dropped candidates are forgotten; the region grows after improvements and shrinks after failures."""
        usable = scores.isfinite().view(len(scores), -1).all(1)
        before = len(self.points)
        self.points = torch.cat([self.points, points[usable]])
        self.answers = torch.cat([self.answers, scores[usable]]) if before else scores[usable]
        # Of an ensemble the worth of all changes with every new one.
        self.scores = self.env.value(self.answers).double()
        if not before or before < self.initial:
            return
        best = self.scores[:before].max()
        improved = bool(usable.any()) and bool(self.scores[before:].max() > best + 1e-3 * best.abs())
        self.successes, self.failures = (self.successes + 1, 0) if improved else (0, self.failures + 1)
        if self.successes == _SUCCESSES:
            self.side, self.successes = min(2 * self.side, _MOST), 0
        elif self.failures == max(1, round(self.points.shape[1] / len(points))):
            self.side, self.failures = self.side / 2, 0
            if self.side < _LEAST:
                self.side = _FIRST

    def _thompson(self, n: int) -> Tensor:
        from botorch.fit import fit_gpytorch_mll
        from botorch.generation.sampling import MaxPosteriorSampling
        from botorch.models import SingleTaskGP
        from gpytorch.mlls import ExactMarginalLogLikelihood

        unit = self.points / (2 * _EDGE) + 0.5
        values = ((self.scores - self.scores.mean()) / self.scores.std())[:, None]
        # botorch draws from torch's global generator: it gets a keyed one, and the user's is put back.
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            # Of jitter added to covariances of nearly equal points, which is what it is for.
            warnings.simplefilter("ignore")
            torch.manual_seed(int(self.env.uniform(1) * 2**31))
            model = SingleTaskGP(unit, values, outcome_transform=None)
            fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
            best = unit[self.scores.argmax()]
            tried = best + self.side * (torch.rand(_TRIED, unit.shape[1], dtype=torch.float64) - 0.5)
            chosen = MaxPosteriorSampling(model, replacement=False)(tried.clamp(0, 1), num_samples=n)
        return (chosen - 0.5) * 2 * _EDGE
