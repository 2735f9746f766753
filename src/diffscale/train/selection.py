"""Which trajectories to learn from: made and chosen by a search, the best one and the worst."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar, cast

import torch
from torch import Tensor

from diffscale._util.errors import DiffscaleError
from diffscale.engine import noise
from diffscale.engine.driver import Task, run_searches
from diffscale.engine.leaderboard import aggregate_pool
from diffscale.searches.random import random
from diffscale.train.policy import Policy
from diffscale.train.trajectories import TrajectorySampler, Visits, drawn_times, hop_of
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

Ended = TypeVar("Ended")
"""What a search ends in: a trajectory, or a sample."""


@dataclass(frozen=True)
class Chosen:
    """The trajectories of B rows: the best and the worst of each, and their rewards float64 [B].

    `rows` int64 [B]: their prompts; `mean`: of the rewards of all trajectories of a row, whose
    number is in `count`.
    Of an ensemble a reward is the value within the row's trajectories.
    """

    rows: Tensor
    best: list[Visits]
    worst: list[Visits]
    reward: Tensor
    lowest: Tensor
    mean: Tensor
    count: Tensor


def choose(
    policy: Policy,
    verifier: Verifier,
    x0: Tensor,
    rows: Tensor,
    keys: Tensor,
    n: int = 3,
    m: int = 3,
    search: Callable[[Environment], Search] | None = None,
    batch_size: int | None = None,
    captions: Sequence[str] | None = None,
) -> Chosen:
    """Make trajectories of `m` steps from clean latents and choose by their rewards.

    Diffusion-Sharpening (Tian et al. 2025, arXiv 2502.12146; n = m = 3): one random time for each row, n noises, the
    trajectory of the highest mean reward. Where less than m steps are left below the time a trajectory is that much
    shorter, as in the authors' code. `search`: one of `diffscale.searches` in the place of n independent noises, with
    the budget of n whole trajectories. `x0`: the latents [B, ...] that all trajectories of a row begin from, each with
    its own noise. `rows` int64 [B]: their prompts. All draws are functions of `keys` int64 [B]. `batch_size`: most
    latents at once, by default found by itself. `captions`: what the verifier is told of each row, by default its
    prompt, which may have been left out for the network alone. No graph is kept.

    Raises DiffscaleError for a verifier that scores more than single pictures, AllCandidatesFailed if a row has no
    finite reward, BudgetTooSmall if n m evaluations do not pay for the search.
    """
    _check(verifier, n, m)
    found: dict[int, _Found[Visits]] = {}
    for at, time, steps in _drawn(policy, keys, m):
        begin = partial(_begun, x0[at.to(x0.device)])
        sampler = TrajectorySampler(policy, begin, time, rows[at], steps, hop_of(policy))
        if captions is not None:
            sampler.prompts = [captions[i] for i in at.tolist()]
        tasks = [Task(_made(search, n), i, int(keys[row]), n * m) for i, row in enumerate(at.tolist())]
        some = _searched(tasks, sampler, sampler.finished, verifier, batch_size)
        found |= zip(at.tolist(), some, strict=True)
    each = [found[i] for i in range(len(rows))]
    return Chosen(rows, [one.best for one in each], [one.worst for one in each], *_figures(each).unbind(1))


@torch.no_grad()
def choose_samples(
    sampler: Sampler,
    verifier: Verifier,
    keys: Tensor,
    n: int = 3,
    search: Callable[[Environment], Search] | None = None,
    batch_size: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Whole samples by their rewards: best and worst clean latents [B, ...], and figures float64 [B, 4].

    These are the rewards of both, the mean, and the number, as of `Chosen`. `sampler`: of B prompts, one for each of
    `keys` int64 [B], of which all draws are functions. The rest is as of `choose`, with the budget of n whole samples.
    """
    _check(verifier, n, 1)
    kept = Keeping(sampler)
    tasks = [Task(_made(search, n), i, int(key), n * sampler.steps) for i, key in enumerate(keys)]
    each = _searched(tasks, cast(Sampler, kept), kept.finished, verifier, batch_size)
    best, worst = (torch.stack([getattr(one, which) for one in each]) for which in ("best", "worst"))
    return best, worst, _figures(each)


class Keeping:
    """A Sampler as it is, whose finished latents [...] are kept in `finished`, by row and key."""

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler
        self.finished: dict[tuple[int, int], Tensor] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sampler, name)

    def run(self, *args: Any, **kwargs: Any) -> State:
        return self._kept(self._sampler.run(*args, **kwargs))

    def step(self, *args: Any, **kwargs: Any) -> State:
        return self._kept(self._sampler.step(*args, **kwargs))

    def solve(self, *args: Any, **kwargs: Any) -> State:
        return self._kept(self._sampler.solve(*args, **kwargs))

    def _kept(self, state: State) -> State:
        if state.step == self._sampler.steps:
            ends = zip(state.prompt_index.tolist(), state.key.tolist(), strict=True)
            self.finished |= zip(ends, state.x.detach(), strict=True)
        return state


@torch.no_grad()
def trajectories(policy: Policy, x0: Tensor, rows: Tensor, keys: Tensor, m: int = 3) -> list[Visits]:
    """Trajectories of `m` steps from clean latents [B, ...] for prompts `rows` int64 [B], with no choice between them.

    Times and noises are functions of `keys` int64 [B] alone: rows of one key are noised alike, as the two pictures of a
    pair in Diffusion-DPO.
    """
    found: dict[int, Visits] = {}
    for at, time, steps in _drawn(policy, keys, m):
        begin = partial(_begun_alike, policy, x0[at.to(x0.device)], keys[at])
        sampler = TrajectorySampler(policy, begin, time, rows[at], steps, hop_of(policy))
        each = torch.arange(len(at))
        sampler.run(sampler.prior(each, each))
        found |= {i: sampler.finished[j, j] for j, i in enumerate(at.tolist())}
    return [found[i] for i in range(len(rows))]


def _drawn(policy: Policy, keys: Tensor, m: int) -> Iterator[tuple[Tensor, Tensor, int]]:
    """Rows [K] whose trajectories have as many steps, their times [K], and that number."""
    time = drawn_times(policy, keys)
    lengths = ((time - policy.times.first) // hop_of(policy) + 1).clamp(max=m).long()
    for steps in lengths.unique().tolist():
        at = (lengths == steps).nonzero().flatten()
        yield at, time[at], steps


def _begun_alike(
    policy: Policy, x0: Tensor, row_keys: Tensor, unit: Tensor, keys: Tensor, rows: Tensor
) -> tuple[Tensor, Tensor]:
    return x0[rows.to(x0.device)], policy.prior(noise.fold_rows(row_keys[rows], "eps"))


def _begun(x0: Tensor, unit: Tensor, keys: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    return x0[rows.to(x0.device)], unit


def _check(verifier: Verifier, n: int, m: int) -> None:
    if isinstance(verifier, NeedsIntermediateX0 | SetVerifier):
        raise DiffscaleError(f"Verifier {verifier.name!r} cannot reward single predictions: train with another.")
    if n < 1 or m < 1:
        raise DiffscaleError(f"Trajectories are n >= 1 of m >= 1 steps, not n={n}, m={m}.")


def _made(search: Callable[[Environment], Search] | None, n: int) -> Callable[[Environment], Search]:
    return partial(random, n=n) if search is None else search


@dataclass(frozen=True)
class _Found(Generic[Ended]):
    best: Ended
    worst: Ended
    reward: float
    lowest: float
    mean: float
    count: int


def _figures(found: Sequence[_Found[Any]]) -> Tensor:
    return torch.tensor([[one.reward, one.lowest, one.mean, one.count] for one in found], dtype=torch.float64)


def _searched(
    tasks: Sequence[Task],
    sampler: Sampler,
    finished: Mapping[tuple[int, int], Ended],
    verifier: Verifier,
    batch_size: int | None,
) -> list[_Found[Ended]]:
    seen: list[list[int]] = [[] for _ in tasks]

    def observe(search: int, keys: Tensor, scores: Tensor, images: Tensor, nfe: list[int]) -> None:
        seen[search] += keys.tolist()  # in the order of the candidates' numbers

    results = run_searches(tasks, sampler, verifier, batch_size, [observe])
    found = []
    for task, result, own in zip(tasks, results, seen, strict=True):
        aggregate = verifier.aggregate if isinstance(verifier, PoolVerifier) else None
        values = aggregate_pool(result.pool if aggregate else result.pool[:, 0], aggregate)
        usable = values.isfinite()
        worst = int(values.masked_fill(~usable, torch.inf).argmin())
        found.append(
            _Found(
                finished[task.prompt_index, result.best.key],
                finished[task.prompt_index, own[worst]],
                result.best.score,
                float(values[worst]),
                float(values[usable].mean()),
                int(usable.sum()),
            )
        )
    return found
