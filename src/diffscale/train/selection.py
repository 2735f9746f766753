"""Selection of the trajectories to learn from: a search makes them, and their rewards decide the best and the worst."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from diffscale._util.errors import DiffscaleError
from diffscale.engine import noise
from diffscale.engine.driver import run_searches
from diffscale.engine.leaderboard import aggregate_pool
from diffscale.engine.task import Task
from diffscale.searches import choose_search
from diffscale.searches.random import random
from diffscale.train.policy import Policy
from diffscale.train.trajectories import Data, Trajectory, TrajectorySampler, step_length
from diffscale.types import (
    Environment,
    NeedsIntermediateX0,
    PoolVerifier,
    Sampler,
    Search,
    SetVerifier,
    State,
    Verifier,
)

MakeSearch = Callable[[Environment], Search]


def search_of(text: str | None) -> MakeSearch | None:
    """The search that `--search` names, None where it is left out."""
    return None if text is None else choose_search(text).make()


@dataclass(frozen=True)
class Selection:
    """The trajectories of B rows: the best and the worst of each, and their rewards float64 [B].

    `rows` int64 [B]: their prompts; `mean`: of the rewards of all trajectories of a row, whose number is in `count`.
    Of an ensemble a reward is the value within the row's trajectories.
    """

    rows: Tensor
    best: list[Trajectory]
    worst: list[Trajectory]
    reward: Tensor
    lowest: Tensor
    mean: Tensor
    count: Tensor


def select_trajectories(
    policy: Policy,
    verifier: Verifier,
    x0: Data,
    rows: Tensor,
    keys: Tensor,
    n: int = 3,
    m: int = 3,
    search: MakeSearch | None = None,
    batch_size: int | None = None,
    captions: Sequence[str] | None = None,
) -> Selection:
    """Make trajectories of `m` steps from clean latents and select by their rewards.

    Diffusion-Sharpening (Tian et al. 2025, arXiv 2502.12146; n = m = 3): one random time for each row, n noises, the
    trajectory of the highest mean reward. Where less than m steps are left below the time a trajectory is that much
    shorter, as in the authors' code. `search`: one of `diffscale.searches` in the place of n independent noises, with
    the budget of n whole trajectories. `x0`: the latents [B, ...] that all trajectories of a row begin from, each with
    its own noise, or other `Data`. `rows` int64 [B]: their prompts. All draws are functions of `keys` int64 [B].
    `batch_size`: most latents at once, by default found by itself. `captions`: what the verifier is told of each row,
    by default its prompt, which may have been left out for the network alone. No graph is kept.

    Raises DiffscaleError for a verifier that scores more than single pictures, AllCandidatesFailed if a row has no
    finite reward, BudgetTooSmall if n m evaluations do not pay for the search.
    """
    best, worst = dict[int, Trajectory](), dict[int, Trajectory]()
    figures = torch.empty(len(rows), 4, dtype=torch.float64)
    for part, sampler in _samplers_by_length(policy, x0, rows, keys, m):
        if captions is not None:
            sampler.prompts = [captions[i] for i in part.tolist()]
        found = search_each(sampler, verifier, keys[part], n, m, search, batch_size)
        figures[part] = torch.tensor([one.figures for one in found], dtype=torch.float64)
        for i, (row, one) in enumerate(zip(part.tolist(), found, strict=True)):
            best[row], worst[row] = (sampler.finished[i, key] for key in one.ends)
    every = range(len(rows))
    return Selection(rows, [best[i] for i in every], [worst[i] for i in every], *figures.unbind(1))


@torch.no_grad()
def select_samples(
    sampler: Sampler,
    verifier: Verifier,
    keys: Tensor,
    n: int = 3,
    search: MakeSearch | None = None,
    batch_size: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Whole samples by their rewards: best and worst clean latents [B, ...], and figures float64 [B, 4].

    These are the rewards of both, the mean, and the number, as of `Selection`. `sampler`: of B prompts, one for each of
    `keys` int64 [B], of which all draws are functions. The rest is as of `select_trajectories`, with the budget of n
    whole samples.
    """
    keeping = KeepingSampler(sampler)
    found = search_each(cast(Sampler, keeping), verifier, keys, n, sampler.steps, search, batch_size)
    best, worst = (
        torch.stack([keeping.finished[row, one.ends[side]] for row, one in enumerate(found)]) for side in (0, 1)
    )
    return best, worst, torch.tensor([one.figures for one in found], dtype=torch.float64)


class KeepingSampler:
    """A Sampler as it is, whose finished latents [...] are kept in `finished`, by row and key."""

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler
        self.finished: dict[tuple[int, int], Tensor] = {}

    def __getattr__(self, name: str) -> Any:
        own = getattr(self._sampler, name)
        return partial(self._keep, own) if name in ("run", "step", "solve") else own

    def _keep(self, move: Callable[..., State], *args: Any, **kwargs: Any) -> State:
        state = move(*args, **kwargs)
        if state.step == self._sampler.steps:
            ends = zip(state.prompt_index.tolist(), state.key.tolist(), strict=True)
            self.finished |= zip(ends, state.x.detach(), strict=True)
        return state


@torch.no_grad()
def make_trajectories(policy: Policy, x0: Tensor, rows: Tensor, keys: Tensor, m: int = 3) -> list[Trajectory]:
    """Trajectories of `m` steps from clean latents [B, ...] for prompts `rows` int64 [B], all of which are taken.

    Times and noises are functions of `keys` int64 [B] alone: rows of one key are noised alike, as the two pictures of a
    pair in Diffusion-DPO.
    """
    made: dict[int, Trajectory] = {}
    for part, sampler in _samplers_by_length(policy, x0, rows, keys, m):
        each = torch.arange(len(part))
        sampler.run(State(policy.prior(noise.fold_rows(keys[part], "eps")), 0, each, each))
        made |= {row: sampler.finished[i, i] for i, row in enumerate(part.tolist())}
    return [made[i] for i in range(len(rows))]


def _samplers_by_length(
    policy: Policy, x0: Data, rows: Tensor, keys: Tensor, m: int
) -> Iterator[tuple[Tensor, TrajectorySampler]]:
    """A random time for each row; rows [K] whose trajectories have as many steps below it, and a sampler of these."""
    time = policy.times.draw(noise.fold_rows(keys, "time"))
    lengths = ((time - policy.times.first) // step_length(policy) + 1).clamp(max=m).long()
    for steps in lengths.unique().tolist():
        part = (lengths == steps).nonzero().flatten()
        data = x0[part.to(x0.device)] if isinstance(x0, Tensor) else x0
        yield part, TrajectorySampler(policy, data, time[part], rows[part], steps)


@dataclass(frozen=True)
class Found:
    """What a search for one row finished: `keys` and `rewards` float64 [n] of its candidates, in their order.

    Dropped ones have no finite reward. `best`: the key of the one that it found best; `nfe`: what was spent.
    """

    keys: list[int]
    rewards: Tensor
    best: int
    nfe: int

    @property
    def ends(self) -> tuple[int, int]:
        """The keys of the best and of the worst candidate."""
        return self.best, self.keys[int(self.rewards.masked_fill(~self.rewards.isfinite(), torch.inf).argmin())]

    @property
    def figures(self) -> list[float]:
        """Rewards of the best and the worst, the mean, and the number, as of `select_samples`."""
        finite = self.rewards[self.rewards.isfinite()]
        return [float(self.rewards[self.keys.index(self.best)]), float(finite.min()), float(finite.mean()), len(finite)]


def search_each(
    sampler: Sampler,
    verifier: Verifier,
    keys: Tensor,
    n: int,
    steps: int,
    search: MakeSearch | None,
    batch_size: int | None = None,
) -> list[Found]:
    """Search once for each row of `sampler`, with the budget of `n` candidates of `steps`, and the row's key."""
    if isinstance(verifier, NeedsIntermediateX0 | SetVerifier):
        raise DiffscaleError(f"Verifier {verifier.name!r} cannot reward single predictions: train with another.")
    if n < 1 or steps < 1:
        raise DiffscaleError(f"Trajectories are n >= 1 of m >= 1 steps, not n={n}, m={steps}.")
    tasks = [Task(search or partial(random, n=n), row, key, n * steps) for row, key in enumerate(keys.tolist())]
    candidates: list[list[int]] = [[] for _ in tasks]

    def observe(search: int, keys: Tensor, scores: Tensor, images: Tensor, nfe: list[int]) -> None:
        candidates[search] += keys.tolist()  # in the order of the candidates' numbers

    results = run_searches(tasks, sampler, verifier, batch_size, [observe])
    aggregate = verifier.aggregate if isinstance(verifier, PoolVerifier) else None
    found = []
    for row, result in enumerate(results):
        rewards = aggregate_pool(result.pool if aggregate else result.pool[:, 0], aggregate)
        found.append(Found(candidates[row], rewards, result.best.key, result.ledger.nfe))
    return found
