"""The bridge from any black-box optimiser to a search: it asks for noises and is told their scores."""

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from diffscale.searches.subspaces import Subspace
from diffscale.types import Environment, Search, State


class Optimiser(Protocol):
    """Maximises over [-3, 3]^d, in which a standard normal point is a typical one."""

    def ask(self, n: int) -> Tensor:
        """`n` points [n, d], float64."""

    def tell(self, points: Tensor, scores: Tensor) -> None:
        """The scores of such points as `Score` answers them: float64 [n], or an ensemble's components [n, K]; -inf
        where a candidate was dropped."""


def ask_tell(env: Environment, first: State, subspace: Subspace, make: Callable[[Tensor], Optimiser], n: int) -> Search:
    """Search the noises of a `subspace` around the noise `first` with an optimiser, n at a time, while the budget pays.

    With P the projection to the subspace, point u stands for the noise x - P x + u of the first noise x, brought to its
    norm, so that all noises stay typical. `make` is given the first noise's own coordinates [1, d], float64, so that
    the first sample can be the first candidate, and makes the optimiser.
    """
    x = first.x.flatten(1).double().cpu()
    own = subspace.project(x)
    scale = x.norm() / x.numel() ** 0.5
    optimiser = make(own / scale)
    while now := min(n, env.nfe_left // env.steps):
        points = optimiser.ask(now)
        noises = x + subspace.lift(points * scale - own)
        noises = noises / noises.norm(dim=1, keepdim=True) * x.norm()
        state = env.start(noises.view(now, *first.x.shape[1:]).to(first.x))
        optimiser.tell(points, (yield from env.evaluate(state)))
