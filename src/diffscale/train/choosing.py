"""Which trajectories to learn from: made and chosen by a search, the best one and the worst."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from diffscale import noise
from diffscale.driver import Task, drive
from diffscale.errors import DiffscaleError
from diffscale.searches.random import random
from diffscale.standing import pooled
from diffscale.train.policy import Policy
from diffscale.train.trajectories import TrajectorySampler, Visits, drawn_times, hop_of
from diffscale.types import Choosing, Environment, Pooled, Recording, Search, Verifier

Own = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From unit noise [B, ...], keys and rows int64 [B] to clean latents."""


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
    x0: Tensor | Own,
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
    its own noise; or what makes them of each trajectory's noise, which are then noised alike, as in Diffusion-DPO's
    pairs, and whose rewards count as those of one more step, since where there is much noise predictions say little.
    `rows` int64 [B]: their prompts. All draws are functions of `keys` int64 [B]. `batch_size`: most latents at once, by
    default found by itself. `captions`: what the verifier is told of each row, by default its prompt, which may have
    been left out for the network alone. No graph is kept.

    Raises DiffscaleError for a verifier that scores more than single pictures, AllCandidatesFailed if a row has no
    finite reward, BudgetTooSmall if n m evaluations do not pay for the search.
    """
    if isinstance(verifier, Recording | Choosing):
        raise DiffscaleError(f"Verifier {verifier.name!r} cannot reward single predictions: train with another.")
    if n < 1 or m < 1:
        raise DiffscaleError(f"Trajectories are n >= 1 of m >= 1 steps, not n={n}, m={m}.")
    found: dict[int, _Found] = {}
    for at, time, steps in _drawn(policy, keys, m):
        begin = partial(_begun, x0[at.to(x0.device)]) if isinstance(x0, Tensor) else partial(_own, policy, x0, at, keys)
        sampler = TrajectorySampler(policy, begin, time, rows[at], steps, hop_of(policy), not isinstance(x0, Tensor))
        if captions is not None:
            sampler.prompts = [captions[i] for i in at.tolist()]
        make = partial(random, n=n) if search is None else search
        tasks = [Task(make, i, int(keys[row]), n * m) for i, row in enumerate(at.tolist())]
        found |= zip(at.tolist(), _searched(tasks, sampler, verifier, batch_size), strict=True)
    each = [found[i] for i in range(len(rows))]
    figures = torch.tensor([[one.reward, one.lowest, one.mean, one.count] for one in each], dtype=torch.float64)
    return Chosen(rows, [one.best for one in each], [one.worst for one in each], *figures.unbind(1))


@torch.no_grad()
def trajectories(policy: Policy, x0: Tensor, rows: Tensor, keys: Tensor, m: int = 3) -> list[Visits]:
    """Trajectories of `m` steps from clean latents [B, ...] for prompts `rows` int64 [B], with no choice between them.

    Times and noises are functions of `keys` int64 [B] alone, so that rows of one key are noised alike, as by `choose`
    where every trajectory has data of its own.
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
    return x0[rows.to(x0.device)], _alike(policy, row_keys[rows])


def _alike(policy: Policy, row_keys: Tensor) -> Tensor:
    """Noise of a row for all its trajectories."""
    return policy.prior(noise.fold_rows(row_keys, "eps"))


def _begun(x0: Tensor, unit: Tensor, keys: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    return x0[rows.to(x0.device)], unit


def _own(
    policy: Policy, make: Own, at: Tensor, row_keys: Tensor, unit: Tensor, keys: Tensor, rows: Tensor
) -> tuple[Tensor, Tensor]:
    return make(unit, keys, at[rows]), _alike(policy, row_keys[at[rows]])


@dataclass(frozen=True)
class _Found:
    best: Visits
    worst: Visits
    reward: float
    lowest: float
    mean: float
    count: int


def _searched(
    tasks: Sequence[Task], sampler: TrajectorySampler, verifier: Verifier, batch_size: int | None
) -> list[_Found]:
    seen: list[list[int]] = [[] for _ in tasks]

    def observe(search: int, keys: Tensor, scores: Tensor, images: Tensor, nfe: list[int]) -> None:
        seen[search] += keys.tolist()  # in the order of the candidates' numbers

    results = drive(tasks, sampler, verifier, batch_size, [observe])
    found = []
    for task, result, own in zip(tasks, results, seen, strict=True):
        combine = verifier.combine if isinstance(verifier, Pooled) else None
        values = pooled(result.pool if combine else result.pool[:, 0], combine)
        usable = values.isfinite()
        worst = int(values.masked_fill(~usable, torch.inf).argmin())
        found.append(
            _Found(
                sampler.finished[task.row, result.best.key],
                sampler.finished[task.row, own[worst]],
                result.best.score,
                float(values[worst]),
                float(values[usable].mean()),
                int(usable.sum()),
            )
        )
    return found
