"""What searches that follow the verifier's gradient in the noise have in common."""

from collections.abc import Callable

from torch import Tensor

from diffscale.types import Environment, Search

Move = Callable[[Tensor, Tensor], Tensor | None]
"""The next noise, from a noise and the gradient of its score (both [D], float64); None where there is no way up."""


def ascend(env: Environment, iterations: int | None, start: Callable[[], Move]) -> Search:
    """Follow gradients through all steps and the decoder from noise to noise; costs 4 iterations steps NFE.

    `start` makes the move for an ascent from a fresh noise: the first one, and another one from each plateau and each
    dropped candidate. `iterations`: None for as many as the budget pays.
    """
    state, move = env.prior(1), start()
    while iterations != 0:
        _, gradient = yield from env.gradient(state)
        x, g = state.x.cpu().double().flatten(), gradient.cpu().double().flatten()
        there = move(x, g) if g.isfinite().all() and g.any() else None
        if there is None:
            state, move = env.prior(1), start()
        else:
            state = env.start(there.view(state.x.shape).to(state.x))
        iterations = None if iterations is None else iterations - 1
