"""Evolutionary search over the noise, and then over states on their way."""

from collections.abc import Generator
from typing import Any

import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor

from diffscale._util.errors import DiffscaleError
from diffscale.types import Environment, PositiveShare, Search, State, concat


def evolution(
    env: Environment,
    at: tuple[NonNegativeInt, ...] | None = None,
    n: PositiveInt | None = None,
    first: PositiveInt | None = None,
    rate: PositiveShare = 0.2,
    tournament: PositiveShare = 0.9,
    eta: PositiveShare = 1.0,
) -> Search:
    """Generations of mutants of the noise, then of later states. Price: first steps + n ((steps - at[0]) + ...).

    EvoSearch (He et al. 2025, arXiv 2505.17618), as its authors run it. `first` noises are sampled to their ends; then
    each entry of `at` is a generation: n parents, each the best of a random share `tournament` of all the samples so
    far that passed that step, have a mutated child each, which is run on from there. `at`: by default 0, 40%, 60% and
    80% of the steps (the authors'); pipelines that are run whole are evolved at step 0 alone. `n`, `first`: by default
    what the budget pays. A noise is mutated to sqrt(1 - rate^2) of it and `rate` of a fresh one. A state on its way is
    mutated by taking the step to it again with other noise, of share `eta`, which keeps its law: ours, where the
    authors add noise of that step's standard deviation, and so leave the noise level. The samples so far, and so the
    elites, stay parents without being run again (ours).

    Raises DiffscaleError for an `at` that is empty, falls, or leaves nothing to run.
    """
    usual = [0, *(round(share * env.steps) for share in (0.4, 0.6, 0.8) if env.predicts)]
    at = tuple(sorted({step for step in usual if step < env.steps})) if at is None else at
    if not at or list(at) != sorted(at) or at[-1] >= env.steps:
        raise DiffscaleError(f"at lists steps below {env.steps} that do not fall, as at=0,{env.steps // 2}, not {at}.")
    children = sum(env.steps - step for step in at)
    if n is None:
        n = max(1, (env.nfe_left - (first or 0) * env.steps) // (children + (0 if first else env.steps)))
    first = max(1, (env.nfe_left - n * children) // env.steps) if first is None else first
    passed: dict[int, list[State]] = {step: [] for step in at}
    scores: dict[int, list[Tensor]] = {step: [] for step in at}
    for step in (None, *at):
        now = min(first, env.nfe_left // env.steps) if step is None else min(n, env.nfe_left // (env.steps - step))
        if not now:
            continue
        if step is None:
            before = start = env.prior(now)
        else:
            parents = concat(passed[step])[_winners(env, torch.cat(scores[step]), now, tournament)]
            before = env.branch(parents, 1) if step else env.mutate(parents, (1 - rate**2) ** 0.5)
            start = env.step(before, eta=eta) if step else before
        found, ends = yield from _finish(env, start, at, eta)
        for stop, state in {step or 0: before, **found}.items():
            if stop in passed:
                passed[stop].append(state)
                scores[stop].append(ends)


def _finish(
    env: Environment, state: State, stops: tuple[int, ...], eta: float
) -> Generator[Any, Any, tuple[dict[int, State], Tensor]]:
    """Run `state` to its end. Returns what the step to each later stop was taken from, predicted, and the scores."""
    found = {}
    for stop in sorted({stop for stop in stops if stop > state.step}):
        before = yield from env.run(state, stop - 1)
        # Noised by nothing, so that the solver forgets what it remembers: the step with fresh noise starts anew.
        found[stop] = yield from env.predict(env.renoise(before, env.levels[stop - 1]))
        state = env.step(found[stop], eta=eta)
    return found, (yield from env.evaluate(state))


def _winners(env: Environment, scores: Tensor, n: int, share: float) -> Tensor:
    """n rows, each the best of a share of all by chance."""
    values = env.value(scores)
    draws = env.uniform(n * len(values)).view(n, -1)
    members = draws.topk(max(1, int(share * len(values))), dim=1).indices
    return members.gather(1, values[members].argmax(1, keepdim=True))[:, 0]
