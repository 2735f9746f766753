"""Ways to divide a budget among looks and finished samples, and what each is expected to find."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Final

import numpy as np
from numpy.typing import NDArray

from diffscale._util.errors import DiffscaleError
from diffscale.searches.looks import Agreement, Look
from diffscale.searches.rounds import affordable, price
from diffscale.types import FEWER_STEPS, Environment

DRAFTS: Final = (0.15, 0.2, 0.25, 0.3, 0.4)
PREDICTIONS: Final = (0.35, 0.45, 0.55)
SHARES: Final = (1 / 4, 1 / 6, 1 / 9, 1 / 13, 1 / 20, 1 / 30)
"""Looks that are tried, as shares of all steps, and shares of the candidates that are finished."""

_TRIALS, _MOST = 400, 300  # simulated prompts, and candidates of each; larger pools are simulated at a smaller scale


@dataclass(frozen=True)
class Policy:
    """`looks` at `sizes` candidates, of which the last number are finished; without looks that is random search.

    `gain`: the expected best score, in standard deviations of the scores of finished samples above their mean.
    """

    looks: tuple[Look, ...]
    sizes: tuple[int, ...]
    gain: float

    def __str__(self) -> str:
        if not self.looks:
            return f"random search of {self.sizes[0]} samples"
        rounds = ", ".join(f"{size} {look}" for look, size in zip(self.looks, self.sizes, strict=False))
        return f"{rounds}, {self.sizes[-1]} finished samples"


def policies(
    env: Environment,
    agreement: Agreement,
    known: tuple[Look, int] | None,
    affordable_time: Callable[[Sequence[Look], Sequence[int]], bool],
) -> list[Policy]:
    """All that the budget pays for, and `affordable_time` of looks and sizes allows; random search is the first.

    `known`: a draft that so many candidates have had already, which costs nothing where it is the first look.
    """
    samples = env.nfe_left // env.steps
    found = [Policy((), (samples,), _expected(agreement, (), (samples,)))]
    for looks in _combinations(env, agreement):
        free = price(env, looks[:1], (known[1], 0)) if known is not None and looks[0] == known[0] else 0
        budget = env.nfe_left + free
        numbers = agreement.numbers(looks, env.steps)
        tried: set[tuple[int, ...]] = set()
        for share in SHARES:
            sizes = tuple(affordable(env, looks, share, budget, least=max(1, min(env.wanted, samples))))
            if sizes and sizes[0] > sizes[-1] and sizes not in tried and affordable_time(looks, sizes):
                tried.add(sizes)
                found.append(Policy(looks, sizes, _expected(agreement, numbers, sizes)))
    return found


def _combinations(env: Environment, agreement: Agreement) -> list[tuple[Look, ...]]:
    """One draft, one or two predictions, and one of each."""
    drafts = [Look(n) for n in _steps(env, DRAFTS) if can_draft(env, n)]
    along = [Look(n, on_the_way=True) for n in _steps(env, PREDICTIONS) if n in env.predicts]
    known = [look for look in (*drafts, *along) if agreement.number(look, look.steps / env.steps) is not None]
    drafts, along = [look for look in known if not look.on_the_way], [look for look in known if look.on_the_way]
    pairs = [(first, last) for first in along for last in along if first.steps < last.steps]
    return [*((each,) for each in known), *pairs, *((draft, look) for draft in drafts for look in along)]


def can_draft(env: Environment, steps: int) -> bool:
    """Whether the model itself can be drafted in so many steps."""
    if FEWER_STEPS not in env.drafts:
        return False
    try:
        return env.draft_nfe(steps) < env.steps
    except DiffscaleError:  # such as one whose call states its steps one by one
        return False


def _steps(env: Environment, shares: Sequence[float]) -> list[int]:
    """Numbers of steps at about these shares: 2 or more, and fewer than all."""
    return sorted({steps for share in shares if 2 <= (steps := round(share * env.steps)) < env.steps})


@lru_cache(maxsize=4096)
def _expected(agreement: Agreement, numbers: tuple[int, ...], sizes: tuple[int, ...]) -> float:
    """The mean of the best finished score over simulated prompts, whose scores are jointly normal by `agreement`."""
    scale = max(1.0, sizes[0] / _MOST)
    sizes = tuple(max(1, round(size / scale)) for size in sizes)
    *looks, final = (_simulated(agreement)[i, :, : sizes[0]] for i in (*numbers, -1))
    for round_, kept in enumerate(sizes[1:], 1):
        weights = agreement.weights(numbers[:round_]).tolist()
        worth = sum(weight * look for weight, look in zip(weights, looks, strict=False))
        # Which are kept matters, and in what order they are does not: a partition takes a third of the time of a sort.
        alive = np.argpartition(-worth, kept - 1, 1)[:, :kept]
        *looks, final = (np.take_along_axis(each, alive, 1) for each in (*looks, final))
    best = float(final.max(1).mean())
    # Of a pool that is larger by a factor the best is higher by about what that adds to the best of so many normals.
    return best + (_best_normal(sizes[0] * scale) - _best_normal(sizes[0]) if scale > 1 else 0.0)


def _best_normal(n: float) -> float:
    """About the expected best of n standard normal scores (Blom 1958)."""
    return NormalDist().inv_cdf((n - 0.375) / (n + 0.25)) if n > 1 else 0.0


@lru_cache(maxsize=4)
def _simulated(agreement: Agreement) -> NDArray[np.float64]:
    """Scores of looks and finished samples [K + 1, _TRIALS, _MOST]; the same draws for every agreement."""
    values, vectors = np.linalg.eigh(np.array(agreement.matrix))
    root = vectors * np.sqrt(np.maximum(values, 0))
    draws = np.random.default_rng(0).standard_normal((_TRIALS, _MOST, len(values)))
    return np.ascontiguousarray(np.moveaxis(draws @ root.T, -1, 0))
