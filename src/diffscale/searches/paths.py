"""Search over paths: noise good trajectories a little less clean, and solve them again."""

import math

from pydantic import PositiveInt

from diffscale._util.errors import DiffscaleError
from diffscale.searches.budget import afford
from diffscale.types import Environment, InnerLevel, Search


def paths(
    env: Environment,
    n: PositiveInt = 2,
    m: PositiveInt | None = None,
    start: InnerLevel = 0.11,
    forward: InnerLevel = 0.78,
    backward: InnerLevel = 0.81,
    length: PositiveInt | None = None,
) -> Search:
    """Noise n paths forward m times each, solve back, keep n. Price: n k + n m (rounds (length + 1) - 1).

    Paper A (Ma et al. 2025, arXiv 2501.09732), section 3.2. n noises are solved to noise level `start` (k evaluations:
    grid steps down to there); then in each round every path is noised `forward` levels up m times, solved `backward`
    levels down in `length` evaluations, and the n best x0-predictions go on, until level 0 after
    rounds = ceil(start / (backward - forward)), where the finished samples are scored. Levels are those of the linear
    flow (`samplers.formulas`), on any schedule (ours). `m`: by default the most that the budget pays. `length`: by
    default the grid's own step, round(backward * steps) (ours; the paper leaves it to the user).

    Raises DiffscaleError if `forward` is not below `backward`, or leads from `start` beyond pure noise, BudgetTooSmall
    if the budget does not pay for it.
    """
    if forward >= backward:
        raise DiffscaleError(f"Search over paths takes forward < backward, not forward={forward}, backward={backward}.")
    if start + forward > 1 + 1e-9:
        raise DiffscaleError(
            f"From start={start} no path can be noised forward={forward} levels up, as pure noise is 1: give less."
        )
    length = max(1, round(backward * env.steps)) if length is None else length
    # The levels are given with a few digits: without the tolerance 0.12 / 0.03 would be five rounds.
    rounds = math.ceil(start / (backward - forward) - 1e-9)
    down = next(step for step, level in enumerate(env.levels) if level <= start + 1e-9)
    a_path = rounds * (length + 1) - 1
    if m is None:
        m = max(1, (env.nfe_left - n * down) // (n * a_path))
    afford(env, n * (down + m * a_path), f"Search over paths with n={n}, m={m}, length={length}")
    state = yield from env.run(env.prior(n), down - 1 if env.levels[down] < start - 1e-9 else down)
    if state.step < down:
        state = yield from env.solve(state, start, 1)
    level = start
    for left in reversed(range(rounds)):
        up = min(level + forward, env.levels[0])
        level = max(level - (backward - forward), 0.0) if left else 0.0
        state = yield from env.solve(env.renoise(env.branch(state, m), up), level, length)
        if left:
            state = yield from env.predict(state)
        scores = env.value((yield from env.score(state)))
        state = state[scores.topk(n).indices]
