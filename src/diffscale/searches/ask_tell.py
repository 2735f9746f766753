"""The bridge from any black-box optimiser to a search: it asks for noises and is told their scores."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from diffscale.types import Environment, Search


class Optimiser(Protocol):
    """Maximises over [-3, 3]^d, in which a standard normal point is a typical one."""

    def ask(self, n: int) -> Tensor:
        """`n` points [n, d], float64."""

    def tell(self, points: Tensor, scores: Tensor) -> None:
        """The scores of such points as `Score` answers them: float64 [n], or an ensemble's components [n, K]; -inf
        where a candidate was dropped."""


def ask_tell(env: Environment, make: Callable[[Tensor], Optimiser], dimensions: int, n: int) -> Search:
    """Search the noises of a random subspace with an optimiser, n at a time, for as long as the budget pays.

    A random orthonormal basis Q [D, d] is drawn; point u stands for the noise x - Q Q^T x + Q u of the first noise x,
    brought to its norm, so that all noises stay typical. `make` is given the first noise's own coordinates [1, d],
    float64, so that the first sample can be the first candidate, and makes the optimiser. Where d is larger
    than D, D is taken.
    """
    first = env.prior(1)
    x = first.x.flatten().double().cpu()
    directions = torch.cat([env.noise(first).flatten(1) for _ in range(min(dimensions, len(x)))]).double().cpu()
    basis = torch.linalg.qr(directions.T).Q
    scale = x.norm() / len(x) ** 0.5
    own = x @ basis
    optimiser = make(own[None] / scale)
    while now := min(n, env.nfe_left // env.steps):
        points = optimiser.ask(now)
        noises = x + (points * scale - own) @ basis.T
        noises = noises / noises.norm(dim=1, keepdim=True) * x.norm()
        state = env.start(noises.view(now, *first.x.shape[1:]).to(first.x))
        optimiser.tell(points, (yield from env.evaluate(state)))
